"""Statements that the mapper writes once and the driver sends: for what is asked most.

A session, its cache and its result take longer over a small statement than the database takes to answer it. What goes
this way raises the driver's own errors, which every edge knows beside the mapper's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import Executable
from sqlalchemy.dialects.postgresql.asyncpg import dialect
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.sql import ClauseElement

from backend.adapters.db.engine import Sessions

_DIALECT = dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy leaves its constructor untyped


class Direct:
    """A statement whose arguments are given by name; those that are always the same stand in it already."""

    def __init__(self, statement: Executable) -> None:
        assert isinstance(statement, ClauseElement)
        compiled: Any = statement.compile(dialect=_DIALECT)
        self._text = str(compiled)
        self._arguments = [(name, compiled.params[name]) for name in compiled.positiontup or ()]

    async def row(self, driver: Any, given: Mapping[str, Any]) -> Any:
        """The first row, or None."""
        return await driver.fetchrow(self._text, *self._in_order(given))

    async def rows(self, driver: Any, given: Mapping[str, Any]) -> list[Any]:
        """All rows."""
        found: list[Any] = await driver.fetch(self._text, *self._in_order(given))
        return found

    def _in_order(self, given: Mapping[str, Any]) -> list[Any]:
        return [given.get(name, fixed) for name, fixed in self._arguments]


async def driver_of(session: AsyncSession) -> Any:
    """The connection of a session as the driver knows it: in the session's transaction, once that has begun."""
    connection = await (await session.connection()).get_raw_connection()
    return connection.driver_connection


@asynccontextmanager
async def driver(sessions: Sessions) -> AsyncIterator[Any]:
    """A connection from the pool of `sessions` on which each statement stands alone."""
    engine = sessions.kw["bind"]
    assert isinstance(engine, AsyncEngine)
    async with engine.connect() as connection:
        yield (await connection.get_raw_connection()).driver_connection
