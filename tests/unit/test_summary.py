"""What is printed of a run that ended: the words of a model stand only for what the gates let pass."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from backend.cli.start import tell


def summary(status: str, error: str | None) -> str:
    facts: dict[str, Any] = {
        "run_id": "01a213df-e9f9-7e2a-9c05-2f13460039ef",
        "number": 1,
        "status": status,
        "error": error,
        "report": {"headline": "All is ready."},
        "tasks": {},
        "findings": {},
        "spent": {"usd": "0.000000", "tokens": 0, "model_calls": 0},
        "repository": "/nowhere",
    }
    said = io.StringIO()
    tell(Console(file=said), facts)
    return said.getvalue()


@pytest.mark.parametrize("status", ["FAILED", "STOPPED_BUDGET", "STOPPED_SECURITY", "STOPPED_USER"])
def test_of_a_run_that_did_not_complete_the_reason_is_told_and_not_its_headline(status: str) -> None:
    said = summary(status, "The tests did not pass.")
    assert ("The tests did not pass." in said, "All is ready." in said) == (True, False)


def test_of_a_run_that_completed_the_headline_is_told() -> None:
    assert "All is ready." in summary("COMPLETED", None)
