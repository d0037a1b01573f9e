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
_PASSING = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError, *LOST_CONNECTION)
_PAUSES = (0.1, 0.3, 1.0, 2.0, 4.0)
_Found = TypeVar("_Found")


class LeaseLost(CompanyError):
    """Another worker has the run now, or its lease ran out: stop silently, touch nothing."""

    code = "lease_lost"


class Sent(NamedTuple):
    """Whether the fence held, and whether what guards the rows was new."""

    fenced: bool
    fresh: bool


async def _no_shortcut() -> bool:
    return False


async def send(
    pool: Any, statements: Callable[[], Sequence[Statement]], shortcut: Callable[[], Awaitable[bool]] = _no_shortcut
) -> Sent:
    """Run the statements in one transaction; a shortcut does the same and returns True, or changes nothing.

    Raises `Invalid` when the database refuses the rows, `Unavailable` when it cannot be reached for some seconds.
    """

    async def once() -> Sent:
        if await shortcut():
            return Sent(fenced=True, fresh=True)
        return await _send_once(pool, statements())

    try:
        return await patiently(once)
    except (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError, asyncpg.RaiseError) as error:
        raise Invalid(f"The database refused what the node recorded: {error}", code="effect_refused") from error


async def fetch(pool: Any, text: str, args: Sequence[Any]) -> Any:
    """Run one statement that may be sent twice, and return its row; raises as `patiently` does."""
    return await patiently(lambda: pool.fetchrow(text, *args))


async def patiently(ask: Callable[[], Awaitable[_Found]]) -> _Found:
    """Ask what may be asked twice, again after a pause while the database is away or busy with itself.

    A node must not fail because of a restart that happens to meet its read. Raises `Unavailable` after some seconds.
    """
    for pause in (*_PAUSES, None):
        try:
            return await ask()
        except _PASSING as error:
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
