"""The one log: events are recorded in the transaction of what they tell, and numbered without gaps in each run."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db.engine import wake_after_commit
from backend.adapters.db.tables import Event, Project, ProjectRun
from backend.domain.event import EVENT_TYPES


def instance() -> str:
    """This process, as events and leases name it."""
    return _name_of(os.getpid())


@lru_cache(maxsize=1)
def _name_of(pid: int) -> str:
    return f"{socket.gethostname()}/{pid}"


def record(
    session: AsyncSession,
    run: ProjectRun,
    event_type: str,
    payload: Mapping[str, Any] | None = None,
    *,
    source: str = "api",
) -> Event:
    """Add the run's next event. The caller holds the row lock of `run` (`runs.get(..., lock=True)`)."""
    assert event_type in EVENT_TYPES, event_type
    run.event_seq += 1
    event = Event(
        tenant_id=run.tenant_id,
        project_id=run.project_id,
        run_id=run.id,
        seq=run.event_seq,
        type=event_type,
        source=source,
        instance=instance(),
        correlation_id=run.correlation_id,
        payload=dict(payload or {}),
    )
    session.add(event)
    wake_after_commit(session, run.id)
    return event


def record_for_project(
    session: AsyncSession,
    project: Project,
    event_type: str,
    payload: Mapping[str, Any] | None = None,
    *,
    source: str = "api",
) -> Event:
    """Add an event of a project that belongs to no run."""
    assert event_type in EVENT_TYPES, event_type
    event = Event(
        tenant_id=project.tenant_id,
        project_id=project.id,
        type=event_type,
        source=source,
        instance=instance(),
        payload=dict(payload or {}),
    )
    session.add(event)
    return event


async def timeline(session: AsyncSession, run_id: UUID, *, after: int = 0, limit: int = 500) -> Sequence[Event]:
    """The events of a run with `seq > after`, in order."""
    found = await session.scalars(
        select(Event).where(Event.run_id == run_id, Event.seq > after).order_by(Event.seq).limit(limit)
    )
    return found.all()
