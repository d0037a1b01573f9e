"""Effects: what a node wants recorded, as plain JSON under the state key `effects`.

The saver projects them to rows in the transaction that commits the node, so the rows exist if and only if the node
will not run again. Tasks are named by their key; ids follow from `backend.domain.ids`. The constructors below are the
only way effects are made; `EFFECTS` lists the kinds that the engine projects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from backend.domain.comment import CommentType
from backend.domain.finding import FindingSource, FindingStatus, Severity
from backend.domain.question import ExpiryAction, QuestionKind
from backend.domain.role import Role
from backend.domain.run import RunStatus
from backend.domain.task import TaskKind, TaskStatus

Effect = dict[str, Any]
"""Plain JSON with `kind` (one of `EFFECTS`) and the arguments of the constructor of that name."""


def create_task(
    key: str,
    title: str,
    *,
    task_kind: TaskKind,
    role: Role,
    description: str = "",
    acceptance_criteria: Sequence[str] = (),
    depends_on: Sequence[str] = (),
    parent: str | None = None,
    priority: int = 0,
    status: TaskStatus = TaskStatus.CREATED,
) -> Effect:
    """Make a task; `key` is unique in the run, `depends_on` and `parent` are keys of tasks made before or beside it."""
    return {
        "kind": "create_task",
        "key": key,
        "title": title,
        "task_kind": str(task_kind),
        "role": str(role),
        "description": description,
        "acceptance_criteria": list(acceptance_criteria),
        "depends_on": list(depends_on),
        "parent": parent,
        "priority": priority,
        "status": str(status),
    }


def move_task(
    key: str,
    to: TaskStatus,
    *,
    iteration: int | None = None,
    branch: str | None = None,
    commit: str | None = None,
    reason: str | None = None,
) -> Effect:
    """Move a task along its life cycle; fields that are None stay as they are. Moving to where it stands is allowed."""
    return {
        "kind": "move_task",
        "key": key,
        "to": str(to),
        "iteration": iteration,
        "branch": branch,
        "commit": commit,
        "reason": reason,
    }


def add_comment(
    author: Role | str,
    comment_type: CommentType,
    body: str,
    *,
    task: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    blockers: Sequence[str] = (),
    next_steps: Sequence[str] = (),
    rationale: str | None = None,
) -> Effect:
    """Add to the audit trail of a task, or of the run where `task` is None; `body` is Markdown."""
    return {
        "kind": "add_comment",
        "author": str(author),
        "comment_type": str(comment_type),
        "body": body,
        "task": task,
        "metrics": dict(metrics or {}),
        "blockers": list(blockers),
        "next_steps": list(next_steps),
        "rationale": rationale,
    }


def record_finding(
    fingerprint: str,
    *,
    source: FindingSource,
    scanner: str,
    rule: str,
    severity: Severity,
    message: str,
    path: str | None = None,
    line: int | None = None,
    task: str | None = None,
    status: FindingStatus = FindingStatus.OPEN,
) -> Effect:
    """Record a finding; the same fingerprint in the same run is the same row, brought up to date (waivers stay)."""
    return {
        "kind": "record_finding",
        "fingerprint": fingerprint,
        "source": str(source),
        "scanner": scanner,
        "rule": rule,
        "severity": str(severity),
        "message": message,
        "path": path,
        "line": line,
        "task": task,
        "status": str(status),
    }


def close_findings(source: FindingSource, still_open: Iterable[str]) -> Effect:
    """Mark as fixed every open finding of `source` in this run whose fingerprint is not in `still_open`."""
    return {"kind": "close_findings", "source": str(source), "still_open": sorted(still_open)}


def record_artifact(
    artifact_kind: str,
    path: str,
    *,
    media_type: str,
    size: int,
    sha256: str,
    commit: str | None = None,
    task: str | None = None,
) -> Effect:
    """Record what a run made; the body is in git at `commit` or in the artifact store under its hash."""
    return {
        "kind": "record_artifact",
        "artifact_kind": artifact_kind,
        "path": path,
        "media_type": media_type,
        "size": size,
        "sha256": sha256,
        "commit": commit,
        "task": task,
    }


def ask_question(
    key: str,
    question_kind: QuestionKind,
    text: str,
    *,
    asked_by: Role | str,
    options: Sequence[str] = (),
    default: str | None = None,
    due_seconds: int | None = None,
    on_expiry: ExpiryAction = ExpiryAction.STOP,
    task: str | None = None,
) -> Effect:
    """Ask people; the run WAITS at the edge after this node until every open question is closed.

    `key` is unique in the run; the next node finds the answer in `RunContext.answers[key]`.
    """
    return {
        "kind": "ask_question",
        "key": key,
        "question_kind": str(question_kind),
        "text": text,
        "asked_by": str(asked_by),
        "options": list(options),
        "default": default,
        "due_seconds": due_seconds,
        "on_expiry": str(on_expiry),
        "task": task,
    }


def record_event(event_type: str, payload: Mapping[str, Any]) -> Effect:
    """Record an event of a type listed in `domain/event.py`."""
    return {"kind": "record_event", "event_type": event_type, "payload": dict(payload)}


def report_progress(done: int, total: int) -> Effect:
    """Say how far the run is: `done` of `total` steps of any size, shown as a share."""
    return {"kind": "report_progress", "done": done, "total": total}


def end_run(status: RunStatus, reason: str, report: Mapping[str, Any], *, code: str | None = None) -> Effect:
    """End the run; only the last node returns this.

    `reason` is one sentence, `report` the final report, `code` a word that programs can tell the end by.
    """
    return {"kind": "end_run", "status": str(status), "reason": reason, "code": code, "report": dict(report)}


EFFECTS = (
    "create_task",
    "move_task",
    "add_comment",
    "record_finding",
    "close_findings",
    "record_artifact",
    "ask_question",
    "record_event",
    "report_progress",
    "end_run",
)
