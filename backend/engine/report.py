"""The final report of a run that its graph did not end: what is done so far, from its rows, and nothing made up."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db.tables import Finding, ProjectRun, Task
from backend.domain.run import RunStatus
from backend.domain.task import TaskStatus


async def report_of(session: AsyncSession, run: ProjectRun, status: RunStatus, reason: str) -> dict[str, Any]:
    """Tasks by status, open findings by severity, and what was spent."""
    tasks = (
        await session.execute(select(Task.key, Task.title, Task.status).where(Task.run_id == run.id).order_by(Task.key))
    ).all()
    findings = (
        await session.execute(
            select(Finding.severity, func.count())
            .where(Finding.run_id == run.id, Finding.status == "open")
            .group_by(Finding.severity)
        )
    ).all()
    done = [task for task in tasks if task.status == TaskStatus.DONE]
    left = [task for task in tasks if task.status != TaskStatus.DONE]
    return {
        "status": str(status),
        "reason": reason,
        "made_by": "engine",
        "tasks_done": [{"key": task.key, "title": task.title} for task in done],
        "tasks_left": [{"key": task.key, "title": task.title, "status": task.status} for task in left],
        "open_findings": {severity: count for severity, count in findings},
        "spent": {
            "usd": str(run.spent_usd),
            "tokens_input": run.spent_tokens_input,
            "tokens_output": run.spent_tokens_output,
            "seconds": str(run.spent_seconds),
            "model_calls": run.model_calls,
        },
    }
