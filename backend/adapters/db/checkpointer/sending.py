"""Sends commits: one statement is one transaction, sent again when the connection was lost on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import asyncpg

from backend.adapters.crashes import crash_point
from backend.adapters.db.commit import Statement
from backend.errors import CompanyError, Invalid, Unavailable

LOST_CONNECTION = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.OperatorInterventionError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TransactionTimeoutError,
)
_PAUSES = (0.1, 0.3, 1.0, 2.0, 4.0)


class LeaseLost(CompanyError):
    """Another worker has the run now, or its lease ran out: stop silently, touch nothing."""

    code = "lease_lost"


async def send(
    pool: Any, statements: Callable[[], Sequence[Statement]], shortcut: Callable[[], Statement | None] = lambda: None
) -> Any:
    """Run the statements in one transaction and return the first one's row.

    A shortcut is one statement that does the same, or changes nothing and returns no row. Raises `Invalid` when the
    database refuses the rows, `Unavailable` when it cannot be reached for some seconds.
    """
    for pause in (*_PAUSES, None):
        try:
            short = shortcut()
            row = await _send_shortcut(pool, short) if short is not None else None
            return row or await _send_once(pool, statements())
        except (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError, asyncpg.RaiseError) as error:
            raise Invalid(f"The database refused what the node recorded: {error}", code="effect_refused") from error
        except (asyncpg.SerializationError, asyncpg.DeadlockDetectedError, *LOST_CONNECTION) as error:
            if pause is None:
                raise Unavailable(f"The database cannot be reached: {error}", code="database_unavailable") from error
            await asyncio.sleep(pause)
    raise AssertionError("unreachable")


async def fetch(pool: Any, text: str, args: Sequence[Any]) -> Any:
    """Run one statement that may be sent twice, and return its row; raises as `send` does."""
    for pause in (*_PAUSES, None):
        try:
            return await pool.fetchrow(text, *args)
        except (asyncpg.SerializationError, asyncpg.DeadlockDetectedError, *LOST_CONNECTION) as error:
            if pause is None:
                raise Unavailable(f"The database cannot be reached: {error}", code="database_unavailable") from error
            await asyncio.sleep(pause)
    raise AssertionError("unreachable")


async def _send_shortcut(pool: Any, statement: Statement) -> Any:
    connection = await pool.acquire()
    try:
        return await connection.fetchrow(statement.text(_DONE), *statement.args)
    except asyncpg.UniqueViolationError:
        # The checkpoint's place is taken; the whole statement says by whom.
        return None
    finally:
        # The pool takes a connection back in three turns of the event loop, which the run need not wait for.
        going = asyncio.ensure_future(pool.release(connection))
        _GOING.add(going)
        going.add_done_callback(_GOING.discard)


async def _send_once(pool: Any, statements: Sequence[Statement]) -> Any:
    first, *others = statements
    async with pool.acquire() as connection:
        if not others:
            return await connection.fetchrow(first.text(_FRESH), *first.args)
        async with connection.transaction():
            row = await connection.fetchrow(first.text(_FRESH), *first.args)
            crash_point("transaction")
            for statement in others if row["fresh"] else ():
                await connection.fetchrow(statement.text(_FRESH), *statement.args)
        return row


_GOING: set[asyncio.Future[None]] = set()
"""Connections on their way back to a pool; kept here so that nobody collects them."""
_DONE = "SELECT 1 AS fenced, 1 AS fresh FROM go"
_FRESH = "SELECT (SELECT count(*) FROM fence) AS fenced, (SELECT count(*) FROM go) AS fresh"
