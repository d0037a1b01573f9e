"""What nodes put on record: verdicts, progress, findings and the trailers of commits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from backend.agents.desk import Desk, Meter
from backend.domain import effect as effects
from backend.domain.board import TaskSpec
from backend.domain.comment import CommentType
from backend.domain.effect import Effect
from backend.domain.finding import FindingSource
from backend.domain.gates import Verdict
from backend.domain.ports import RunContext, ScanFinding, StepFailed, Visit, Worktree
from backend.domain.role import Role
from backend.domain.task import TaskKind, TaskStatus
from graphs.software_company.state import CompanyState

STAGES = (
    "pm_analyze_requirements",
    "pm_create_tasks",
    "bootstrap_repo",
    "qa_test",
    "security_scan",
    "docs_finalize",
    "devops_prepare",
    "final_decision",
)
REQUIRED = (Role.PM, Role.DEVELOPER)


def next_visit(state: CompanyState, node: str) -> int:
    """The number of this visit of a node, the same again when it runs again after a crash."""
    return state.get("visits", {}).get(node, 0) + 1


def enter(context: RunContext, node: str, number: int, *, task: str | None = None) -> None:
    """Take the seat of a visit that asks nobody, so that its rows and events carry its number all the same."""
    context.seat(Visit(node, number, task))


def is_on(context: RunContext, role: Role) -> bool:
    """Whether the settings of the run give the role a seat."""
    return context.run.config.role(role).enabled


def desk(context: RunContext, role: Role, visit: Visit, tree: Worktree | None = None, *, kind: str = "") -> Desk:
    """Seat a role; raises `StepFailed` when a role that the company cannot do without is switched off."""
    settings = context.run.config.role(role)
    if not settings.enabled and role in REQUIRED:
        raise StepFailed("role_required", f"The role {role} is switched off; this graph needs it, so switch it on.")
    seat = context.seat(visit)
    return Desk(
        role=role,
        ask=seat.ask,
        config=settings,
        prompts=context.prompts,
        toolbox=None if tree is None else seat.toolbox(role, tree),
        steps=context.run.config.limits.agent_steps,
        task_key=visit.task_key,
        task_type=kind or None,
        may_ask=context.run.config.people.may_ask,
    )


def verdict(found: Verdict, *, task: str | None = None) -> list[Effect]:
    """Put a verdict on record, as an event and a comment."""
    payload = {"gate": str(found.gate), "decision": str(found.decision), "reason": found.reason, "task": task}
    body = f"**{found.gate}: {found.decision}**. {found.reason}"
    return [
        effects.record_event("gate.decided", payload),
        effects.add_comment("gate", CommentType.GATE, body, task=task, rationale=found.reason),
    ]


def as_state(found: Verdict, *, task: str | None = None) -> dict[str, dict[str, str]]:
    """The verdict as the `gates` channel holds it: by gate, or by gate and task."""
    name = f"{found.gate}/{task}" if task else str(found.gate)
    return {name: {"decision": str(found.decision), "reason": found.reason}}


def progress(state: CompanyState, node: str, *, tasks_done: int | None = None) -> Effect:
    """Say how far the run is when `node` is done: the stages and the tasks count one each."""
    board = state.get("board", {})
    done = tasks_done if tasks_done is not None else sum(card["status"] == TaskStatus.DONE for card in board.values())
    stages = STAGES.index(node) + 1 if node in STAGES else STAGES.index("bootstrap_repo") + 1
    return effects.report_progress(stages + done, len(STAGES) + max(len(board), done))


def create(spec: TaskSpec) -> Effect:
    """Make the row of a task."""
    return effects.create_task(
        spec["key"],
        spec["title"],
        task_kind=TaskKind(spec["kind"]),
        role=Role(spec["role"]),
        description=spec["description"],
        acceptance_criteria=spec["criteria"],
        depends_on=spec["depends_on"],
        parent=spec["parent"],
        priority=spec["priority"],
    )


def scan_findings(source: FindingSource, found: Iterable[ScanFinding], *, task: str | None = None) -> list[Effect]:
    """Record what programs found."""
    return [
        effects.record_finding(
            entry.fingerprint,
            source=source,
            scanner=entry.scanner,
            rule=entry.rule,
            severity=entry.severity,
            message=entry.message,
            path=entry.path,
            line=entry.line,
            task=task,
        )
        for entry in found
    ]


def trailers(context: RunContext, role: Role, meter: Meter | None = None, *, task: str | None = None) -> dict[str, str]:
    """The trailers of a commit: what it belongs to, who made it, with which model and at what cost."""
    known = {"Run-Id": str(context.run.run_id), "Role": str(role)}
    if task is not None:
        known["Task-Id"] = task
    if meter is not None and meter.calls:
        known |= {"Model": ", ".join(meter.models), "Cost-USD": f"{meter.usd:f}"}
    return known


def commit_made(commit: str, *, role: Role, task: str | None = None, merge: bool = False) -> Effect:
    """Tell of a commit."""
    payload = {"commit": commit, "role": str(role), "task": task, "merge": merge}
    return effects.record_event("commit.created", payload)


def bullets(lines: Iterable[str]) -> str:
    """Lines as a Markdown list."""
    return "\n".join(f"- {line}" for line in lines)


def section(title: str, lines: Iterable[str]) -> str:
    """A titled Markdown list, or nothing where there are no lines."""
    listed = bullets(lines)
    return f"\n\n**{title}**\n\n{listed}" if listed else ""


def first_line(text: str, limit: int = 70) -> str:
    """The first line of a text, for the subject of a commit."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def metrics(meter: Meter, **more: Any) -> Mapping[str, Any]:
    """The figures of a comment."""
    return {**meter.metrics(), **more}
