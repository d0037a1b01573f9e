"""Effects as rows: what a finished node visit wants recorded, folded into what one statement can write.

Pure. Ids follow from the run and LangGraph's task id, which is the same again when a node runs again from the same
checkpoint; tasks are named by their key. Text that Postgres cannot keep is mended here, since a model wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import orjson

from backend.domain.effect import EFFECTS, Effect
from backend.domain.event import ENDING_EVENT, EVENT_TYPES
from backend.domain.ids import named, task_name
from backend.domain.lifecycle import transition
from backend.domain.role import Role
from backend.domain.run import ENDED, RunStatus
from backend.domain.task import MOVES, TaskStatus
from backend.errors import CompanyError, Invalid

Row = dict[str, Any]
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_ROLES = frozenset(Role)


def storable(effects: Sequence[Effect]) -> Sequence[Effect]:
    """Return effects whose strings Postgres can keep: NUL and lone surrogates become U+FFFD."""
    try:
        if b"\\u0000" not in orjson.dumps(effects):
            return effects
    except TypeError:
        pass  # A lone surrogate, a key that is not text or a very large integer.
    return mended(effects)  # type: ignore[no-any-return]  # a list stays one


def mended(value: Any) -> Any:
    """Return JSON with U+FFFD for NUL and lone surrogates."""
    if isinstance(value, str):
        return _UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, Mapping):
        return {mended(str(key)): mended(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [mended(item) for item in value]
    return value


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished node visit and its effects; `number` is the visit's, where the node took a seat."""

    node: str
    task: str
    """LangGraph's id of the task."""
    effects: Sequence[Effect] = ()
    number: int | None = None
    task_key: str | None = None


@dataclass(slots=True)
class Rows:
    """What the effects of one commit come to; each list feeds one part of the statement."""

    tasks: list[Row] = field(default_factory=list)
    dependencies: list[Row] = field(default_factory=list)
    moves: list[list[Row]] = field(default_factory=list)
    """Rounds: a task moves at most once in each."""
    comments: list[Row] = field(default_factory=list)
    findings: dict[str, Row] = field(default_factory=dict)
    closings: list[Row] = field(default_factory=list)
    artifacts: list[Row] = field(default_factory=list)
    questions: list[Row] = field(default_factory=list)
    events: list[tuple[str, Row]] = field(default_factory=list)
    following: list[str] = field(default_factory=list)
    """The nodes that start when this is committed."""
    ends_superstep: bool = False
    progress: int | None = None
    end: Row | None = None


class Projection:
    """Folds the effects of finished visits of one run into `Rows`."""

    def __init__(self, run_id: UUID) -> None:
        self.rows = Rows()
        self._run_id = run_id
        self._visit = Finished(node="", task="")
        self._ordinals: dict[str, int] = {}
        self._tasks: dict[str, str] = {}

    def add(self, visit: Finished) -> None:
        """Fold in one visit; raises `Invalid` naming the node for an effect that cannot be recorded."""
        self._visit, self._ordinals = visit, {}
        for effect in storable(visit.effects):
            kind = effect.get("kind") if isinstance(effect, dict) else None
            if kind not in EFFECTS:
                raise Invalid(f"The node {visit.node} returned an effect of the unknown kind {kind!r}.")
            try:
                _FOLDS[kind](self, effect)
            except (KeyError, ValueError, TypeError, CompanyError) as error:
                raise Invalid(f"The effect {kind} of the node {visit.node} cannot be recorded: {error}") from error
        payload: Row = {"node": visit.node}
        if visit.number is not None:
            payload["visit"] = visit.number
        if visit.task_key is not None:
            payload["task"] = visit.task_key
        self.rows.events.append(("node.finished", payload))

    def started(self, nodes: Sequence[str]) -> None:
        """Record that the run goes on with these nodes: the last visit's event says so."""
        self.rows.following = list(nodes)
        finished = [payload for event_type, payload in self.rows.events if event_type == "node.finished"]
        if finished and nodes:
            finished[-1]["next"] = self.rows.following

    def _id(self, kind: str) -> str:
        ordinal = self._ordinals[kind] = self._ordinals.get(kind, 0) + 1
        return named(self._run_id, f"{self._visit.task}/{kind}/{ordinal}")

    def _task(self, key: str | None) -> str | None:
        if key is None:
            return None
        if key not in self._tasks:
            self._tasks[key] = task_name(self._run_id, key)
        return self._tasks[key]

    def _event(self, event_type: str, payload: Row) -> None:
        self.rows.events.append((event_type, payload))

    def _create_task(self, effect: Effect) -> None:
        task, key, title, status = self._task(effect["key"]), effect["key"], effect["title"], effect["status"]
        kind, role = effect["task_kind"], effect["role"]
        TaskStatus(status)
        self.rows.tasks.append(
            {
                "id": task,
                "key": key,
                "title": title,
                "description": effect["description"],
                "kind": kind,
                "status": status,
                "assigned_role": role,
                "priority": effect["priority"],
                "iteration": 0,
                "acceptance_criteria": effect["acceptance_criteria"],
                "parent_task_id": self._task(effect["parent"]),
                "branch": None,
                "commit": None,
            }
        )
        for other in dict.fromkeys(effect["depends_on"]):
            self.rows.dependencies.append({"task_id": task, "depends_on_task_id": self._task(other)})
        told = {"task_id": task, "key": key, "title": title, "status": status, "task_kind": kind, "role": role}
        self._event("task.created", told)

    def _move_task(self, effect: Effect) -> None:
        to = TaskStatus(effect["to"])
        created = next((row for row in self.rows.tasks if row["key"] == effect["key"]), None)
        if created is None:
            self._later_move(effect)
            return
        before = TaskStatus(created["status"])
        changed = {name: effect[name] for name in ("iteration", "branch", "commit") if effect[name] is not None}
        created |= changed | {"status": str(to)}
        if before is not to:
            transition(MOVES, before, to, what=f"The task {effect['key']}")
            moved = {"task_id": created["id"], "key": effect["key"], "from": str(before), "to": str(to)}
            self._event("task.moved", moved | {"reason": effect["reason"], "iteration": created["iteration"]})

    def _later_move(self, effect: Effect) -> None:
        row = {name: effect[name] for name in ("key", "to", "iteration", "branch", "commit", "reason")}
        row["id"] = self._task(effect["key"])
        for moves in self.rows.moves:
            if all(other["key"] != effect["key"] for other in moves):
                moves.append(row)
                return
        self.rows.moves.append([row])

    def _add_comment(self, effect: Effect) -> None:
        comment, task, author, kind = self._id("comment"), effect["task"], effect["author"], effect["comment_type"]
        self.rows.comments.append(
            {
                "id": comment,
                "task_id": self._task(task),
                "author_role": author if author in _ROLES else None,
                "author_name": author,
                "comment_type": kind,
                "body": effect["body"],
                "metrics": effect["metrics"],
                "blockers": effect["blockers"],
                "next_steps": effect["next_steps"],
                "rationale": effect["rationale"],
                "node": self._visit.node,
                "visit": self._visit.number,
            }
        )
        self._event("comment.added", {"comment_id": comment, "task": task, "author": author, "comment_type": kind})

    def _record_finding(self, effect: Effect) -> None:
        names = ("fingerprint", "source", "scanner", "rule", "severity", "message", "path", "line", "status")
        row = {name: effect[name] for name in names}
        row |= {"id": self._id("finding"), "task_id": self._task(effect["task"])}
        self.rows.findings[effect["fingerprint"]] = row
        shown = ("fingerprint", "source", "scanner", "rule", "severity", "path", "line", "status")
        self._event("finding.recorded", {name: row[name] for name in shown})

    def _close_findings(self, effect: Effect) -> None:
        still_open = set(effect["still_open"])
        for fingerprint, row in self.rows.findings.items():
            if row["source"] == effect["source"] and row["status"] == "open" and fingerprint not in still_open:
                row["status"] = "fixed"
        self.rows.closings.append({"source": effect["source"], "still_open": sorted(still_open)})

    def _record_artifact(self, effect: Effect) -> None:
        row = {name: effect[name] for name in ("path", "media_type", "size", "sha256", "commit")}
        row |= {"id": self._id("artifact"), "task_id": self._task(effect["task"]), "kind": effect["artifact_kind"]}
        self.rows.artifacts.append(row)
        event = {"id": row["id"]} | {name: effect[name] for name in ("artifact_kind", "path", "sha256")}
        self._event("artifact.recorded", event)

    def _ask_question(self, effect: Effect) -> None:
        names = ("key", "text", "asked_by", "options", "default", "due_seconds", "on_expiry")
        row = {name: effect[name] for name in names} | {"id": self._id("question"), "kind": effect["question_kind"]}
        row["task_id"] = self._task(effect["task"])
        self.rows.questions.append(row)
        shown = ("key", "question_kind", "text", "options", "default", "asked_by")
        self._event("question.asked", {"id": row["id"]} | {name: effect[name] for name in shown})

    def _record_event(self, effect: Effect) -> None:
        if effect["event_type"] not in EVENT_TYPES:
            raise Invalid(f"there is no event type {effect['event_type']!r}")
        self._event(effect["event_type"], effect["payload"])

    def _report_progress(self, effect: Effect) -> None:
        self.rows.progress = max(0, min(100, effect["done"] * 100 // max(1, effect["total"])))

    def _end_run(self, effect: Effect) -> None:
        status = RunStatus(effect["status"])
        if status not in ENDED:
            raise Invalid(f"a run cannot end as {status}")
        end = {"status": str(status), "reason": effect["reason"], "code": effect["code"], "report": effect["report"]}
        self.rows.end = end
        self.rows.progress = 100 if status is RunStatus.COMPLETED else self.rows.progress


_FOLDS: dict[str, Callable[[Projection, Effect], None]] = {
    "create_task": Projection._create_task,
    "move_task": Projection._move_task,
    "add_comment": Projection._add_comment,
    "record_finding": Projection._record_finding,
    "close_findings": Projection._close_findings,
    "record_artifact": Projection._record_artifact,
    "ask_question": Projection._ask_question,
    "record_event": Projection._record_event,
    "report_progress": Projection._report_progress,
    "end_run": Projection._end_run,
}


def ending_event(end: Row) -> tuple[str, Row]:
    """The event that tells of the end of a run."""
    return ENDING_EVENT[RunStatus(end["status"])], {
        "status": end["status"],
        "reason": end["reason"],
        "code": end["code"],
    }
