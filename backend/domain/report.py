"""The end of a run: the status that follows from facts, and the report text that the PM writes about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from backend.domain.gates import Decision, Gate
from backend.domain.plan import Line, Reply
from backend.domain.run import RunStatus
from backend.domain.task import TaskStatus


class Report(Reply):
    """What the PM tells the person who wrote the brief; figures and verdicts are added from facts."""

    headline: Annotated[str, Field(min_length=1, max_length=300)]
    summary: Annotated[str, Field(min_length=1, max_length=6_000)]
    delivered: Annotated[tuple[Line, ...], Field(max_length=60)] = ()
    limitations: Annotated[tuple[Line, ...], Field(max_length=60)] = ()
    how_to_use: Annotated[tuple[Line, ...], Field(max_length=30)] = ()


_STOPS: Mapping[Gate, RunStatus] = {
    Gate.PLAN: RunStatus.STOPPED_USER,
    Gate.RELEASE: RunStatus.STOPPED_USER,
    Gate.SECURITY: RunStatus.STOPPED_SECURITY,
}

_GOES_ON_AT: Mapping[Gate, str] = {
    Gate.PLAN: "pm_create_tasks",
    Gate.RELEASE: "devops_prepare",
    Gate.SECURITY: "security_scan",
    Gate.DEPLOY: "devops_prepare",
}


class Ending(Reply):
    """How a run ends: its status, why as a code and in one sentence, and the node a retry goes on at.

    `code` is the gate that ended it (`review`, `security`, …) or `tasks_not_done`; None for a run that completed, as is
    `retry_at`.
    """

    status: RunStatus
    reason: str
    code: str | None = None
    retry_at: str | None = None


def ending(verdicts: Mapping[str, Mapping[str, Any]], tasks: Mapping[str, str]) -> Ending:
    """Decide from the last verdict of every gate (`gate` or `gate/task`) and the status of every task."""
    for gate in Gate:
        for name in sorted(name for name in verdicts if _gate(name) == gate):
            verdict = verdicts[name]
            if verdict["decision"] in (Decision.STOP, Decision.FAIL):
                stopped = verdict["decision"] == Decision.STOP
                status = _STOPS.get(gate, RunStatus.FAILED) if stopped else RunStatus.FAILED
                retry_at = _GOES_ON_AT.get(gate, "dispatch")
                return Ending(status=status, reason=verdict["reason"], code=str(gate), retry_at=retry_at)
    undone = sorted(key for key, status in tasks.items() if status != TaskStatus.DONE)
    if undone or not tasks:
        named = ", ".join(undone[:5]) or "there are none"
        reason = f"Tasks are not done: {named}."
        return Ending(status=RunStatus.FAILED, reason=reason, code="tasks_not_done", retry_at="dispatch")
    return Ending(status=RunStatus.COMPLETED, reason=_praise(verdicts))


def not_pushed(ended: Ending, why: str) -> Ending:
    """The end of a run whose work is done, and whose remote did not take it; a retry pushes again."""
    reason = f"{ended.reason} {why} The work is on the local branch; mend the remote, then retry."
    return Ending(status=RunStatus.FAILED, reason=reason, code="not_pushed", retry_at="final_decision")


def _gate(name: str) -> str:
    return name.partition("/")[0]


def _praise(verdicts: Mapping[str, Mapping[str, Any]]) -> str:
    accepted = {_gate(name) for name, verdict in verdicts.items() if verdict["decision"] == Decision.ACCEPT}
    off = {_gate(name) for name, verdict in verdicts.items() if verdict["decision"] == Decision.OFF}
    if not accepted and not off:
        return "Every task is done and every gate passed."
    parts = ["Every task is done"]
    parts += [f"accepted with findings: {', '.join(sorted(accepted))}"] if accepted else []
    parts += [f"not judged, because switched off: {', '.join(sorted(off))}"] if off else []
    return "; ".join(parts) + "."


def untested(criteria: Sequence[str], proved: frozenset[str]) -> list[str]:
    """Return the ids of acceptance criteria that no accepted test says it proves, in order."""
    return [criterion for criterion in criteria if criterion not in proved]
