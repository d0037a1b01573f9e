"""Finding what a person names: an id, the first letters of one, or `last`; and all that leads to a line of code."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Text, cast, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db.tables import DeadLetter, Finding, ModelCall, ProjectRun, Question, Task
from backend.domain.ids import DEFAULT_TENANT
from backend.errors import Conflict, NotFound


async def run_named(session: AsyncSession, name: str, *, tenant_id: UUID = DEFAULT_TENANT) -> UUID:
    """The run that a person means; raises `NotFound`, or `Conflict` for letters that several begin with."""
    found = await _named(session, ProjectRun, name, tenant_id)
    return _only(found, name, "run", "`company runs` lists them")


async def question_named(session: AsyncSession, name: str, *, tenant_id: UUID = DEFAULT_TENANT) -> UUID:
    """The question that a person means; raises as `run_named` does."""
    found = await _named(session, Question, name, tenant_id)
    return _only(found, name, "question", "`company show` lists those that are open")


async def dead_letter_named(session: AsyncSession, name: str, *, tenant_id: UUID = DEFAULT_TENANT) -> UUID:
    """The dead letter that a person means; raises as `run_named` does."""
    found = await _named(session, DeadLetter, name, tenant_id)
    return _only(found, name, "dead letter", "`company dead-letters list` lists them")


async def finding_named(session: AsyncSession, name: str, *, tenant_id: UUID = DEFAULT_TENANT) -> UUID:
    """The finding that a person means; raises as `run_named` does."""
    found = await _named(session, Finding, name, tenant_id)
    return _only(found, name, "finding", "`company show` lists those that are open")


async def _named(
    session: AsyncSession, rows: type[ProjectRun | Question | DeadLetter | Finding], name: str, tenant_id: UUID
) -> Sequence[UUID]:
    query = select(rows.id).where(rows.tenant_id == tenant_id).order_by(rows.created_at.desc(), rows.id.desc())
    if name == "last":
        return (await session.scalars(query.limit(1))).all()
    if not re.fullmatch(r"[0-9a-fA-F-]{4,36}", name):
        return ()
    begins = cast(rows.id, Text).startswith(name.lower())
    return (await session.scalars(query.where(begins).limit(2))).all()


def _only(found: Sequence[UUID], name: str, what: str, hint: str) -> UUID:
    if not found:
        raise NotFound(f"There is no {what} {name}; {hint}.")
    if len(found) > 1:
        raise Conflict(f"Several {what}s begin with {name}; give more letters.")
    return found[0]


async def behind(session: AsyncSession, run: ProjectRun, trailers: Mapping[str, str], path: str) -> dict[str, Any]:
    """What leads to a commit: its task with criteria, what the task's model calls cost, findings about the file."""
    key = trailers.get("Task-Id")
    task = None if key is None else await session.scalar(select(Task).where(Task.run_id == run.id, Task.key == key))
    calls = (
        select(func.count(), cast(func.coalesce(func.sum(ModelCall.cost_usd), 0), Text))
        .where(ModelCall.run_id == run.id, ModelCall.status == "done")
        .where(ModelCall.task_key == key if key is not None else ModelCall.role == trailers.get("Role", ""))
    )
    count, cost = (await session.execute(calls)).one()
    findings = await session.scalars(
        select(Finding).where(Finding.run_id == run.id, Finding.path == path).order_by(Finding.created_at)
    )
    return {
        "task": None
        if task is None
        else {
            "key": task.key,
            "title": task.title,
            "kind": task.kind,
            "status": task.status,
            "acceptance_criteria": task.acceptance_criteria,
        },
        "model_calls": count,
        "cost_usd": cost,
        "findings": [
            {"rule": f.rule, "severity": f.severity, "status": f.status, "line": f.line, "message": f.message}
            for f in findings
        ],
    }
