"""Two runs beside each other: what they cost, how long they took, what they made and what the gates said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db.tables import Event, Finding, ProjectRun, TaskComment
from backend.domain.comment import CommentType
from backend.domain.ports import Diff
from backend.errors import Conflict, NotFound
from backend.operations import reports, repositories


async def of_runs(session: AsyncSession, first: ProjectRun, second: ProjectRun, *, home: Path) -> dict[str, Any]:
    """Both sides from their rows, and the diff from the first result to the second.

    `diff` is null, and `no_diff` says why, for runs of different projects or where one has committed nothing.
    """
    found, why = await _diff(session, first, second, home)
    files = [] if found is None else found.files
    return {
        "runs": [await _side(session, run) for run in (first, second)],
        "no_diff": why,
        "diff_stat": {
            "files": len(files),
            "added": sum(file.added for file in files),
            "removed": sum(file.removed for file in files),
        },
        "diff": None if found is None else found.text,
        "diff_truncated": found is not None and found.truncated,
    }


async def _side(session: AsyncSession, run: ProjectRun) -> dict[str, Any]:
    return {
        **await reports.of_run(session, run),
        "parent_run_id": None if run.parent_run_id is None else str(run.parent_run_id),
        "findings_by": await _findings(session, run),
        "tests": await _tests(session, run),
        "gates": await _gates(session, run),
    }


async def _findings(session: AsyncSession, run: ProjectRun) -> list[dict[str, Any]]:
    rows = await session.execute(
        select(Finding.severity, Finding.status, func.count())
        .where(Finding.run_id == run.id)
        .group_by(Finding.severity, Finding.status)
        .order_by(Finding.severity, Finding.status)
    )
    return [{"severity": severity, "status": status, "count": count} for severity, status, count in rows]


async def _tests(session: AsyncSession, run: ProjectRun) -> dict[str, Any] | None:
    """The figures of the last test report that programs made; null where no test ran."""
    found: dict[str, Any] | None = await session.scalar(
        select(TaskComment.metrics)
        .where(TaskComment.run_id == run.id, TaskComment.comment_type == CommentType.TEST_REPORT)
        .order_by(TaskComment.created_at.desc())
        .limit(1)
    )
    if found is None or "tests" not in found:
        return None
    passed = int(found["passed"])
    return {"passed": passed, "failed": int(found["tests"]) - passed, "coverage": found.get("coverage")}


async def _gates(session: AsyncSession, run: ProjectRun) -> list[dict[str, Any]]:
    """Every verdict, in order."""
    rows = await session.scalars(
        select(Event.payload).where(Event.run_id == run.id, Event.type == "gate.decided").order_by(Event.seq)
    )
    return [{name: payload.get(name) for name in ("gate", "decision", "reason", "task")} for payload in rows]


async def _diff(
    session: AsyncSession, first: ProjectRun, second: ProjectRun, home: Path
) -> tuple[Diff | None, str | None]:
    if first.project_id != second.project_id:
        return None, "The runs belong to different projects, whose results have no common history."
    try:
        commits = [await repositories.commit_of(session, run) for run in (first, second)]
        return await repositories.diff(home, first, *commits), None
    except (Conflict, NotFound) as error:
        return None, error.message
