"""Connections: one engine a process, and the transaction that every edge works in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DisconnectionError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from backend.adapters.db.pool import ANSWER, CONNECT, PATIENCE, limits
from backend.domain.ports import Bell

Sessions = async_sessionmaker[AsyncSession]

DRIVER = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""Errors of the driver, which SQLAlchemy lets through as they are while it opens a connection."""
AWAY = (OSError, TimeoutError, SQLAlchemyError, *DRIVER)
"""What is seen of a database that is away or goes away; a loop that must never end goes on after any of these."""

_RINGS = "company_rings"
_WAKES = "company_wakes"


def asyncpg_url(url: str) -> URL:
    """Return a `postgres://` or `postgresql://` URL with the asyncpg driver named."""
    return make_url(url.replace("postgres://", "postgresql://", 1)).set(drivername="postgresql+asyncpg")


def connect(url: str, *, pool_size: int = 10, patience: float = PATIENCE, answer: float | None = ANSWER) -> AsyncEngine:
    """Make the engine of this process; connections are opened when they are first needed.

    A transaction in which this process falls silent for `patience` seconds is rolled back by the server; a server that
    does not answer a statement is given up after `answer` seconds (None: never).
    """
    engine = create_async_engine(
        asyncpg_url(url),
        pool_size=pool_size,
        max_overflow=0,
        pool_recycle=1800,
        connect_args={"server_settings": limits(patience), "command_timeout": answer, "timeout": CONNECT},
    )
    event.listen(engine.sync_engine, "checkout", _refuse_closed)
    return engine


def _refuse_closed(connection: Any, _record: Any, _proxy: Any) -> None:
    """Let the pool open a connection anew that the server has closed; asking the server would take three messages."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError("The server has closed the connection.")


def sessions_of(engine: AsyncEngine) -> Sessions:
    """Sessions whose rows stay readable after the commit."""
    return async_sessionmaker(engine, expire_on_commit=False)


def ring_after_commit(session: AsyncSession, run_id: UUID) -> None:
    """Note that the workers are to be told of a run once this transaction is committed."""
    session.info.setdefault(_RINGS, set()).add(run_id)


def wake_after_commit(session: AsyncSession, run_id: UUID) -> None:
    """Note that a run's followers are to be told once this transaction is committed."""
    session.info.setdefault(_WAKES, set()).add(run_id)


def tell(session: AsyncSession, bell: Bell) -> None:
    """Ring and wake for what the session noted; called by an edge after its commit."""
    for run_id in session.info.pop(_RINGS, set()):
        bell.ring(run_id)
    for run_id in session.info.pop(_WAKES, set()):
        bell.wake(run_id)


@asynccontextmanager
async def transaction(
    sessions: Sessions, bell: Bell, *, turn: AbstractAsyncContextManager[None] | None = None
) -> AsyncIterator[AsyncSession]:
    """One transaction of an edge: commit at the end, roll back on any error, and only then ring and wake.

    A `turn` is waited for before it begins, and held until it is over.
    """
    async with sessions() as session:
        async with turn or nullcontext(), session.begin():
            yield session
        tell(session, bell)
        # What is told leaves before whoever asked goes on.
        await asyncio.sleep(0)
