"""The checkpoints of a run as people see them: where it stood and what had run."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db.checkpoint_tables import Checkpoint
from backend.adapters.db.tables import Event

_MAIN = ""


async def of_run(session: AsyncSession, run_id: UUID, *, limit: int, skip: int) -> list[dict[str, Any]]:
    """The checkpoints of the graph itself, newest first; subgraphs' are theirs alone."""
    rows = await session.execute(
        select(
            Checkpoint.checkpoint_id,
            Checkpoint.parent_id,
            Checkpoint.metadata_,
            Checkpoint.created_at,
        )
        .where(Checkpoint.thread_id == run_id, Checkpoint.namespace == _MAIN)
        .order_by(Checkpoint.number.desc())
        .limit(limit)
        .offset(skip)
    )
    return [
        {
            "checkpoint_id": str(checkpoint_id),
            "parent_id": None if parent_id is None else str(parent_id),
            "step": metadata.get("step"),
            "source": metadata.get("source"),
            "created_at": created_at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        }
        for checkpoint_id, parent_id, metadata, created_at in rows
    ]


async def visits(session: AsyncSession, run_id: UUID) -> dict[str, int]:
    """How often each node has finished a visit."""
    node = Event.payload["node"].astext
    rows = await session.execute(
        select(node, func.count())
        .where(Event.run_id == run_id, Event.type == "node.finished", node.is_not(None))
        .group_by(node)
        .order_by(node)
    )
    return {str(name): int(count) for name, count in rows}
