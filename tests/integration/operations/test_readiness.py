"""Whether a run can begin here: the real templates against the environment of this process."""

from __future__ import annotations

from typing import Any

import pytest

from backend.domain.patch import merge
from backend.operations import readiness
from backend.operations.templates import built_ins


def config(slug: str, *patches: dict[str, Any]) -> Any:
    return merge(next(template for template in built_ins() if template.slug == slug).patch, *patches)


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without any provider's key."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def test_the_standard_template_without_a_key_says_what_to_set() -> None:
    found = readiness.faults(config("standard"), "My own brief.")
    assert len(found) == 1
    assert "OPENAI_API_KEY" in found[0].message


@pytest.mark.parametrize("slug", ["standard", "lean", "regulated"])
def test_with_a_key_every_template_for_own_work_can_begin(slug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-something")
    assert readiness.faults(config(slug), "My own brief.") == []


def test_a_blank_key_is_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "  ")
    assert readiness.faults(config("standard"), "My own brief.")


def test_local_models_need_neither_key_nor_price() -> None:
    assert readiness.faults(config("local"), "My own brief.") == []
    assert readiness.faults(config("local", {"budget": {"usd": 1}}), "My own brief.") == []


def test_an_unknown_model_under_a_money_limit_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-something")
    odd = {"roles": {"qa": {"model": "model-that-nobody-made"}}}
    found = readiness.faults(config("lean", odd), "My own brief.")
    assert [fault.pointer for fault in found] == ["/models/prices"]
    assert readiness.faults(config("lean", odd, {"budget": {"usd": None}}), "My own brief.") == []


def test_the_showcase_with_a_brief_of_ones_own_is_refused_at_once() -> None:
    found = readiness.faults(config("showcase"), "My own brief.")
    assert [fault.pointer for fault in found] == ["/models/providers/showcase/recording"]
