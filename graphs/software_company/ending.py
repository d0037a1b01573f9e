"""The last node: facts decide how the run ends, the PM writes the report, the branch points at the result.

A run that does not end well is not at the end of the graph: the driver stops at the effect `end_run`, and a retry goes
on at the node that can do better, with new rounds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from langgraph.runtime import Runtime

from backend.agents import pm
from backend.agents.desk import Meter
from backend.domain import effect as effects
from backend.domain import gates
from backend.domain.board import Card, Stage, follow_up, new_card, order
from backend.domain.comment import CommentType
from backend.domain.effect import Effect
from backend.domain.gates import Decision, Gate, Verdict
from backend.domain.ports import RunContext, Visit
from backend.domain.report import Ending, Report, ending, not_pushed
from backend.domain.role import Role
from backend.domain.run import RunStatus
from backend.domain.task import TaskKind
from graphs.software_company import trail
from graphs.software_company.state import CompanyState, Update

CHANGES = 3
"""Changes that may be asked for before a release."""
ARTIFACTS = 300
_MEDIA = {
    "py": "text/x-python",
    "md": "text/markdown",
    "toml": "application/toml",
    "yml": "application/yaml",
    "yaml": "application/yaml",
    "json": "application/json",
}


async def final_decision(state: CompanyState, runtime: Runtime[RunContext]) -> Update:
    """End the run by what is on record, or take up the change that a person asks for before the release."""
    context, number = runtime.context, trail.next_visit(state, "final_decision")
    trail.enter(context, "final_decision", number)
    verdict, answer = _release(state, context)
    update: Update = {"visits": {"final_decision": number}, "gates": trail.as_state(verdict)}
    recorded = trail.verdict(verdict) if context.run.config.people.approve_release else []
    if verdict.decision is Decision.FIX:
        return update | _change(state, answer, recorded)
    statuses = {key: card["status"] for key, card in state.get("board", {}).items()}
    ended = ending({**state.get("gates", {}), **trail.as_state(verdict)}, statuses)
    ended, delivered = await _deliver(state, context, ended)
    facts = _facts(state, ended)
    desk = trail.desk(context, Role.PM, Visit("final_decision", number))
    report = await pm.report(desk, brief=context.run.brief, facts=facts)
    recorded += delivered
    recorded.append(_comment(report, ended, desk.meter))
    recorded.append(trail.progress(state, "final_decision"))
    whole = {**report.model_dump(mode="json"), "facts": facts, "commit": state.get("head")}
    recorded.append(effects.end_run(ended.status, ended.reason, whole, code=ended.code))
    update |= _reset(state, ended)
    return {**update, "ending": ended.model_dump(mode="json"), "effects": recorded}


def _release(state: CompanyState, context: RunContext) -> tuple[Verdict, str]:
    """The verdict about the release; nobody is asked about work that another gate has stopped."""
    asked = f"release-{state.get('visits', {}).get('devops_prepare', 0)}"
    answer = context.answers.get(asked)
    if not context.run.config.people.approve_release or (answer is None and _stopped(state)):
        return gates.approval(Gate.RELEASE, None, rounds_left=0), ""
    text, by = (answer.text, answer.by) if answer else ("reject: nobody answered", "nobody")
    made = sum(key.startswith("change-") for key in state["specs"])
    return gates.approval(Gate.RELEASE, text, by=by, rounds_left=CHANGES - made), text


def _stopped(state: CompanyState) -> bool:
    words = {verdict["decision"] for name, verdict in state.get("gates", {}).items() if name != Gate.RELEASE}
    return not words <= {str(word) for word in gates.GOES_ON}


def _change(state: CompanyState, answer: str, recorded: list[Effect]) -> Update:
    number = 1 + sum(key.startswith("change-") for key in state["specs"])
    spec = follow_up(
        f"change-{number}",
        len(state["specs"]) + 1,
        title=f"A change asked for before the release: {trail.first_line(answer, 100)}",
        kind=TaskKind.FEATURE,
        description=answer[:6000],
        criteria=[trail.first_line(answer, 480)],
    )
    return {
        "specs": {spec["key"]: spec},
        "board": {spec["key"]: new_card()},
        "ending": {},
        "effects": [*recorded, trail.create(spec)],
    }


def _facts(state: CompanyState, ended: Ending) -> dict[str, Any]:
    specs, board, qa = state.get("specs", {}), state.get("board", {}), state.get("qa", {})
    return {
        "status": str(ended.status),
        "reason": ended.reason,
        "tasks": [
            {"key": key, "title": specs[key]["title"], "status": board[key]["status"], "rounds": board[key]["rounds"]}
            for key in order(specs)
        ],
        "gates": state.get("gates", {}),
        "tests": {name: qa.get(name) for name in ("passed", "failed", "coverage")},
        "criteria_without_a_test": qa.get("untested", []),
        "security": dict(state.get("safety", {})),
    }


async def _deliver(state: CompanyState, context: RunContext, ended: Ending) -> tuple[Ending, list[Effect]]:
    """Point a branch at the result, the real one only when the run completed, push it, and record what is in it.

    Returns how the run ends after that: a remote that does not take the work fails it.
    """
    head = state.get("head")
    if head is None:
        return ended, []
    if ended.status is not RunStatus.COMPLETED:
        await context.workspace.point(f"unfinished/{context.run.number}", head)
        return ended, []
    place = context.run.config.workspace
    await context.workspace.point(place.branch, head)
    recorded = []
    if place.push:
        why = await context.workspace.push(place, place.branch, head)
        recorded.append(effects.record_event("branch.pushed", {"branch": place.branch, "commit": head, "error": why}))
        ended = ended if why is None else not_pushed(ended, why)
    for path in (await context.workspace.files(head))[:ARTIFACTS]:
        text = await context.workspace.read(head, path)
        if text is not None:
            recorded.append(_artifact(path, text, head))
    return ended, recorded


def _artifact(path: str, text: str, commit: str) -> Effect:
    body = text.encode("utf-8", "surrogatepass")
    return effects.record_artifact(
        "file",
        path,
        media_type=_MEDIA.get(path.rpartition(".")[2], "text/plain"),
        size=len(body),
        sha256=hashlib.sha256(body).hexdigest(),
        commit=commit,
    )


def _comment(report: Report, ended: Ending, meter: Meter) -> Effect:
    return effects.add_comment(
        Role.PM,
        CommentType.REPORT,
        f"**{report.headline}**\n\n{report.summary}"
        + trail.section("Delivered", report.delivered)
        + trail.section("Limitations", report.limitations)
        + trail.section("How to use it", report.how_to_use),
        metrics=trail.metrics(meter, status=str(ended.status)),
        blockers=[ended.reason] if ended.retry_at else [],
        next_steps=["Retry the run when the reason is gone."] if ended.retry_at else [],
        rationale=ended.reason,
    )


def _ends(verdict: Mapping[str, str]) -> bool:
    return verdict["decision"] in (Decision.STOP, Decision.FAIL)


def _reset(state: CompanyState, ended: Ending) -> Update:
    """New rounds for a retry: nothing of this is used when the run is at its end."""
    if ended.retry_at is None:
        return {}
    board: dict[str, Card] = {
        key: {"status": card["status"], "stage": str(Stage.AGAIN), "rounds": 0}
        for key, card in state.get("board", {}).items()
        if card["stage"] == Stage.EXHAUSTED
    }
    return {
        "board": board,
        "qa": {**state.get("qa", {}), "rounds": 0},
        "safety": {**state.get("safety", {}), "rounds": 0},
        "gates": {name: None for name, verdict in state.get("gates", {}).items() if _ends(verdict)},
    }
