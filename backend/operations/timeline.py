"""What happened in a run, for people: events and comments in order."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db.tables import Event
from backend.operations import pages

VIEW = pages.View(Event, leave_out=frozenset({"tenant_id"}))

_TIMELINE = text("""
SELECT row_to_json(x)::text FROM (
    SELECT to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS at, seq, entry, what, who, says
    FROM v_run_timeline WHERE run_id = :run_id ORDER BY v_run_timeline.at, seq NULLS FIRST LIMIT :limit OFFSET :skip
) x
""")


async def of_run(session: AsyncSession, run_id: UUID, *, limit: int, skip: int) -> list[str]:
    """Entries of the view `v_run_timeline` as JSON, oldest first."""
    values: dict[str, Any] = {"run_id": run_id, "limit": limit, "skip": skip}
    return [str(row) for row in await session.scalars(_TIMELINE, values)]
