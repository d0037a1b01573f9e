"""How a run ends follows from verdicts and tasks alone."""

import pytest

from backend.domain.report import ending, untested
from backend.domain.run import RunStatus

DONE = {"a": "DONE"}


def verdict(decision: str) -> dict[str, str]:
    return {"decision": decision, "reason": f"It was {decision}."}


@pytest.mark.parametrize(
    ("verdicts", "tasks", "status", "retry_at"),
    [
        ({"qa": "pass", "security": "pass"}, DONE, RunStatus.COMPLETED, None),
        ({"qa": "accept", "security": "off"}, DONE, RunStatus.COMPLETED, None),
        ({"security": "stop"}, DONE, RunStatus.STOPPED_SECURITY, "security_scan"),
        ({"plan": "stop"}, {}, RunStatus.STOPPED_USER, "pm_create_tasks"),
        ({"release": "stop"}, DONE, RunStatus.STOPPED_USER, "devops_prepare"),
        ({"qa": "fail"}, DONE, RunStatus.FAILED, "dispatch"),
        ({"review/a": "fail", "review/b": "accept"}, {"a": "BLOCKED"}, RunStatus.FAILED, "dispatch"),
        ({"deploy": "fail"}, DONE, RunStatus.FAILED, "devops_prepare"),
        ({"qa": "pass"}, {"a": "DONE", "b": "READY"}, RunStatus.FAILED, "dispatch"),
        ({}, {}, RunStatus.FAILED, "dispatch"),
    ],
)
def test_the_end_follows_from_facts(
    verdicts: dict[str, str], tasks: dict[str, str], status: RunStatus, retry_at: str | None
) -> None:
    found = ending({name: verdict(decision) for name, decision in verdicts.items()}, tasks)
    assert (found.status, found.retry_at) == (status, retry_at)


def test_what_nobody_judged_is_said() -> None:
    found = ending({"qa": verdict("pass"), "security": verdict("off"), "review/a": verdict("accept")}, DONE)
    assert (
        found.reason
        == "Every task is done; accepted with findings: review; not judged, because switched off: security."
    )


def test_criteria_without_a_test_are_named_in_order() -> None:
    assert untested(["a#1", "a#2", "b#1"], frozenset({"a#2"})) == ["a#1", "b#1"]
