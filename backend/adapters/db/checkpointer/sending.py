"""What a driven run asks of the database, asked again while the database is away for a moment.

A commit is one transaction, mostly one statement; its rows have keys, so that sent twice it is written once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeVar

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
    # Too many connections, no room on the disk, no memory: it passes when somebody makes room.
    asyncpg.InsufficientResourcesError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TransactionTimeoutError,
)
_Found = TypeVar("_Found")
_PAUSES = (0.1, 0.3, 1.0, 2.0, 4.0)


class LeaseLost(CompanyError):
    """Another worker has the run now, or its lease ran out: stop silently, touch nothing."""

    code = "lease_lost"


class Sent(NamedTuple):
    """Whether the fence held, and whether what guards the rows was new."""

    fenced: bool
    fresh: bool


async def send(pool: Any, statements: Sequence[Statement]) -> Sent:
    """Run the statements in one transaction.

    Raises `Invalid` when the database refuses the rows, `Unavailable` when it cannot be reached for some seconds.
    """
    try:
        return await persist(lambda: _send_once(pool, statements))
    except (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError, asyncpg.RaiseError) as error:
        raise Invalid(f"The database refused what the node recorded: {error}", code="effect_refused") from error


async def fetch(pool: Any, text: str, args: Sequence[Any]) -> Any:
    """Run one statement that may be sent twice, and return its row; raises as `send` does."""
    return await persist(lambda: pool.fetchrow(text, *args))


async def persist(work: Callable[[], Awaitable[_Found]]) -> _Found:
    """Do what may be done twice until the database answers; raises `Unavailable` when it stays away for some seconds.

    Whatever a run asks of the database goes this way, reads as well: an error of the driver that came out of a node
    would look like the node's own.
    """
    for pause in (*_PAUSES, None):
        try:
            return await work()
        except (asyncpg.SerializationError, asyncpg.DeadlockDetectedError, *LOST_CONNECTION) as error:
            if pause is None:
                raise Unavailable(f"The database cannot be reached: {error}", code="database_unavailable") from error
            await asyncio.sleep(pause)
    raise AssertionError("unreachable")


async def _send_once(pool: Any, statements: Sequence[Statement]) -> Sent:
    first, *others = statements
    async with pool.acquire() as connection:
        if not others:
            return _sent(await connection.fetchrow(first.text(_FRESH), *first.args))
        async with connection.transaction():
            sent = _sent(await connection.fetchrow(first.text(_FRESH), *first.args))
            crash_point("transaction")
            for statement in others if sent.fresh else ():
                await connection.fetchrow(statement.text(_FRESH), *statement.args)
        return sent


def _sent(row: Any) -> Sent:
    return Sent(bool(row["fenced"]), bool(row["fresh"]))


_FRESH = "SELECT (SELECT count(*) FROM fence) AS fenced, (SELECT count(*) FROM go) AS fresh"
