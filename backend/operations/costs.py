"""What a run has cost, seen from every side: totals that an auditor can add up."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import Text, cast, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from backend.adapters.db.tables import ModelCall, ProjectRun

SIDES: dict[str, tuple[InstrumentedAttribute[Any], ...]] = {
    "by_role": (ModelCall.role,),
    "by_node": (ModelCall.node,),
    "by_visit": (ModelCall.node, ModelCall.visit),
    "by_model": (ModelCall.provider, ModelCall.model),
    "by_task": (ModelCall.task_key,),
}
"""The groupings that are shown."""

_SAVED = text(
    "WITH finished AS (SELECT payload ->> 'node' AS node, (payload ->> 'visit')::int AS visit, min(seq) AS seq"
    " FROM events WHERE run_id = :run AND type = 'node.finished' AND payload ? 'visit' GROUP BY 1, 2),"
    " claims AS (SELECT seq, (payload ->> 'epoch')::bigint AS epoch FROM events WHERE run_id = :run"
    " AND type IN ('run.started', 'run.resumed'))"
    " SELECT count(*) AS calls, coalesce(sum(c.tokens_input + c.tokens_output), 0)::bigint AS tokens,"
    " coalesce(sum(c.cost_usd), 0)::numeric(14, 6)::text AS usd"
    " FROM model_calls c JOIN finished f ON f.node = c.node AND f.visit = c.visit"
    " WHERE c.run_id = :run AND c.status = 'done' AND c.replayable"
    " AND c.lease_epoch < (SELECT max(epoch) FROM claims WHERE claims.seq < f.seq)"
    " AND NOT EXISTS (SELECT FROM model_calls d WHERE d.run_id = c.run_id AND d.node = c.node AND d.visit = c.visit"
    " AND d.ordinal = c.ordinal AND d.attempt > c.attempt AND d.status = 'done')"
)
"""Calls that were paid under an earlier lease than the one in which their visit was finished."""


async def saved(session: AsyncSession, run_id: UUID) -> dict[str, Any]:
    """What did not have to be paid again: replies that the journal gave to visits that ran again.

    A visit runs again after a crash, a pause in its middle or a retry. Each reply counts once, however often it was
    given, and as soon as its visit is finished.
    """
    row = (await session.execute(_SAVED, {"run": run_id})).one()
    return {"calls": row.calls, "tokens": row.tokens, "usd": row.usd}


async def of_run(session: AsyncSession, run: ProjectRun) -> dict[str, Any]:
    """Totals, limits and every side; money as strings with six decimals."""
    return {
        "run_id": str(run.id),
        "limits": {
            "tokens": run.limit_tokens,
            "usd": None if run.limit_usd is None else f"{run.limit_usd:.6f}",
            "seconds": run.limit_seconds,
        },
        "spent": {
            "tokens": run.spent_tokens_input + run.spent_tokens_output,
            "tokens_input": run.spent_tokens_input,
            "tokens_output": run.spent_tokens_output,
            "tokens_cached": run.spent_tokens_cached,
            "usd": f"{run.spent_usd:.6f}",
            "seconds": f"{run.spent_seconds:.6f}",
        },
        "saved": await saved(session, run.id),
        "reserved": {"tokens": run.reserved_tokens, "usd": f"{run.reserved_usd:.6f}"},
        **{side: await _side(session, run.id, columns) for side, columns in SIDES.items()},
    }


async def _side(
    session: AsyncSession, run_id: UUID, columns: tuple[InstrumentedAttribute[Any], ...]
) -> list[dict[str, Any]]:
    rows = await session.execute(
        select(
            *columns,
            func.count().filter(ModelCall.status.in_(("done", "failed"))).label("calls"),
            func.sum(ModelCall.tokens_input).label("tokens_input"),
            func.sum(ModelCall.tokens_output).label("tokens_output"),
            func.sum(ModelCall.tokens_cached).label("tokens_cached"),
            cast(func.sum(ModelCall.cost_usd), Text).label("cost_usd"),
            cast(func.sum(ModelCall.seconds), Text).label("seconds"),
        )
        .where(ModelCall.run_id == run_id)
        .group_by(*columns)
        .order_by(func.sum(ModelCall.cost_usd).desc(), *columns)
    )
    return [
        {key: int(value) if key.startswith("tokens") else value for key, value in row.items()}
        for row in rows.mappings()
    ]
