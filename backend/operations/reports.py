"""What a run has come to, from rows: at any time of its life, and whoever ended it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from backend.adapters.db.tables import Artifact, Finding, ProjectRun, Question, Task
from backend.domain.finding import FindingStatus
from backend.domain.question import QuestionStatus
from backend.operations import costs


async def of_run(session: AsyncSession, run: ProjectRun) -> dict[str, Any]:
    """The graph's final report (null while there is none) beside the facts: tasks, findings, questions, spend."""
    is_open = Finding.status == FindingStatus.OPEN
    return {
        "run_id": str(run.id),
        "number": run.number,
        "status": run.status,
        "stop_reason": run.stop_reason,
        "error": run.error,
        "report": run.final_report,
        "tasks": await _counts(session, Task.status, run.id),
        "open_findings": await _counts(session, Finding.severity, run.id, is_open),
        "findings": await _counts(session, Finding.status, run.id),
        "artifacts": await _counts(session, Artifact.kind, run.id),
        "open_questions": await session.scalar(
            select(func.count()).where(Question.run_id == run.id, Question.status == QuestionStatus.OPEN)
        ),
        "saved": await costs.saved(session, run.id),
        "spent": {
            "usd": f"{run.spent_usd:.6f}",
            "tokens": run.spent_tokens_input + run.spent_tokens_output,
            "seconds": f"{run.spent_seconds:.6f}",
            "model_calls": run.model_calls,
        },
    }


async def _counts(
    session: AsyncSession, column: InstrumentedAttribute[str], run_id: UUID, *where: Any
) -> dict[str, int]:
    owner = column.class_
    rows = await session.execute(
        select(column, func.count()).where(owner.run_id == run_id, *where).group_by(column).order_by(column)
    )
    return {str(word): int(count) for word, count in rows}
