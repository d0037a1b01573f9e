"""Tasks as people see them: lists, the tree of a run, and the tasks that people add.

A task that the graph made is moved by the graph alone; people edit its words and comment on it. A task that people made
is theirs to move along the same life cycle.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, func, literal_column, select, type_coerce
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from backend.adapters.db.tables import ProjectRun, Task, TaskDependency
from backend.domain.ids import DEFAULT_TENANT
from backend.domain.lifecycle import transition
from backend.domain.role import Role
from backend.domain.run import ENDED
from backend.domain.task import MOVES, TaskKind, TaskStatus
from backend.errors import Conflict, Fault, Invalid, NotFound
from backend.operations import events, pages, runs
from backend.operations.projects import check_version

MAX_TREE = 5_000


def _depends_on() -> Any:
    other = aliased(Task)
    keys = (
        select(func.json_agg(other.key))
        .join(TaskDependency, TaskDependency.depends_on_task_id == other.id)
        .where(TaskDependency.task_id == Task.id)
        .correlate(Task)
        .scalar_subquery()
    )
    return type_coerce(func.coalesce(keys, literal_column("'[]'::json")), JSON)


VIEW = pages.View(Task, leave_out=frozenset({"tenant_id"}), more={"depends_on": _depends_on()})
LISTED = pages.View(Task, leave_out=frozenset({"tenant_id", "description"}))


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task that a person adds to a run; without a key it gets the next `H-<number>`."""

    title: str
    kind: TaskKind
    role: Role
    key: str | None = None
    description: str = ""
    acceptance_criteria: Sequence[str] = ()
    depends_on: Sequence[str] = ()
    parent: str | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Edit:
    """What is to change of a task; None leaves a thing as it is."""

    title: str | None = None
    description: str | None = None
    acceptance_criteria: Sequence[str] | None = None
    priority: int | None = None
    status: TaskStatus | None = None


async def get(session: AsyncSession, task_id: UUID, *, tenant_id: UUID = DEFAULT_TENANT) -> Task:
    """The task. Raises `NotFound`."""
    task = await session.scalar(select(Task).where(Task.id == task_id, Task.tenant_id == tenant_id))
    if task is None:
        raise NotFound(f"There is no task {task_id}.")
    return task


async def page(
    session: AsyncSession,
    wanted: pages.PageRequest,
    *,
    tenant_id: UUID = DEFAULT_TENANT,
    run_id: UUID | None = None,
    status: TaskStatus | None = None,
    role: Role | None = None,
) -> pages.Page:
    """A page of the tasks that fit, newest first."""
    where = [Task.tenant_id == tenant_id]
    if run_id is not None:
        where.append(Task.run_id == run_id)
    if status is not None:
        where.append(Task.status == status)
    if role is not None:
        where.append(Task.assigned_role == role)
    return await LISTED.page(session, wanted, *where)


async def tree(session: AsyncSession, run_id: UUID, *, tenant_id: UUID = DEFAULT_TENANT) -> list[dict[str, Any]]:
    """All tasks of a run, each with its `children`, in the order they were made."""
    await runs.get(session, run_id, tenant_id=tenant_id)
    order = (Task.created_at, Task.id)
    rows = [json.loads(row) for row in await VIEW.all(session, Task.run_id == run_id, order_by=order, limit=MAX_TREE)]
    by_id = {row["id"]: row for row in rows}
    roots: list[dict[str, Any]] = []
    for row in rows:
        row["children"] = row.get("children", [])
        parent = by_id.get(row["parent_task_id"])
        (parent.setdefault("children", []) if parent is not None else roots).append(row)
    return roots


async def create(
    session: AsyncSession, run_id: UUID, new: NewTask, *, by: str, tenant_id: UUID = DEFAULT_TENANT
) -> Task:
    """Add a task to a run that has not ended.

    Raises `Conflict` for a key that is taken or a run that has ended, `Invalid` for keys that the run does not have.
    """
    run = await runs.get(session, run_id, tenant_id=tenant_id, lock=True)
    if run.status in ENDED:
        raise Conflict(f"Run {run.number} has ended as {run.status}; tasks can no longer be added.")
    rows = await session.execute(select(Task.key, Task.id).where(Task.run_id == run_id))
    known = {row.key: row.id for row in rows}
    key = new.key or f"H-{1 + sum(1 for taken in known if taken.startswith('H-'))}"
    if key in known:
        raise Conflict(f"Run {run.number} already has a task {key}.")
    task = Task(
        tenant_id=tenant_id,
        run_id=run_id,
        parent_task_id=_id_of(known, new.parent, "/parent") if new.parent else None,
        key=key,
        title=new.title,
        description=new.description,
        kind=new.kind,
        status=TaskStatus.CREATED,
        assigned_role=new.role,
        priority=new.priority,
        acceptance_criteria=list(new.acceptance_criteria),
    )
    session.add(task)
    await session.flush()
    for index, other in enumerate(dict.fromkeys(new.depends_on)):
        depends_on = _id_of(known, other, f"/depends_on/{index}")
        session.add(TaskDependency(task_id=task.id, depends_on_task_id=depends_on))
    events.record(session, run, "task.created", {"key": key, "title": new.title, "role": new.role, "by": by})
    await session.flush()
    return task


def _id_of(known: dict[str, UUID], key: str, pointer: str) -> UUID:
    if key not in known:
        raise Invalid(f"The run has no task {key}.", faults=[Fault(pointer, "the key of a task of this run")])
    return known[key]


async def edit(
    session: AsyncSession,
    task_id: UUID,
    changes: Edit,
    *,
    expected_version: int,
    by: str,
    tenant_id: UUID = DEFAULT_TENANT,
) -> Task:
    """Change a task's words, or move one that people made.

    Raises `Conflict` when it was changed since `expected_version` was read, for a move that its life cycle does not
    allow, and for moving a task of the graph.
    """
    found = await get(session, task_id, tenant_id=tenant_id)
    run = await runs.get(session, found.run_id, tenant_id=tenant_id, lock=True)
    task = await session.get_one(Task, task_id, with_for_update={"key_share": True}, populate_existing=True)
    check_version(task.version, expected_version, f"task {task.key}")
    if changes.status is not None and changes.status != task.status:
        _move(session, run, task, changes.status, by)
    task.title = task.title if changes.title is None else changes.title
    task.description = task.description if changes.description is None else changes.description
    task.priority = task.priority if changes.priority is None else changes.priority
    if changes.acceptance_criteria is not None:
        task.acceptance_criteria = list(changes.acceptance_criteria)
    task.version += 1
    events.record(session, run, "task.changed", {"key": task.key, "version": task.version, "by": by})
    await session.flush()
    return task


def _move(session: AsyncSession, run: ProjectRun, task: Task, wanted: TaskStatus, by: str) -> None:
    if not made_by_people(task):
        raise Conflict(f"Task {task.key} belongs to the graph, which alone moves it; comment on it instead.")
    before = TaskStatus(task.status)
    task.status = transition(MOVES, before, wanted, what=f"Task {task.key}")
    events.record(session, run, "task.moved", {"key": task.key, "from": before, "to": wanted, "by": by})


def made_by_people(task: Task) -> bool:
    """Whether a person added the task: the ids of the graph's tasks follow from their keys (UUIDv5)."""
    return task.id.version != 5
