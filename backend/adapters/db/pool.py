"""The raw asyncpg pool beside SQLAlchemy's engine, for the statements that every committed node pays for."""

from __future__ import annotations

from typing import Any

import asyncpg
from sqlalchemy.engine import make_url

PATIENCE = 15.0
"""Seconds of silence in an open transaction after which the server takes a process for frozen or cut off."""
ANSWER = 10.0
"""Seconds after which a statement without an answer counts as lost, and its connection with it: a network that swallows
what is sent must hold nobody for longer."""
CONNECT = 5.0
"""Seconds that a new connection may take."""
Pool = asyncpg.Pool
Connection = asyncpg.Connection


class _Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg ships no types
    """A connection that goes back to the pool without a reset round trip: nothing here leaves session state behind."""

    def get_reset_query(self) -> str:
        """Reset nothing."""
        return ""


def plain_url(url: str) -> str:
    """Return the URL as asyncpg itself reads it, without a driver name."""
    parsed = make_url(url.replace("postgres://", "postgresql://", 1)).set(drivername="postgresql")
    return parsed.render_as_string(hide_password=False)


def limits(patience: float) -> dict[str, str]:
    """What the server is told of a connection, so that a frozen process does not keep its row locks.

    Silence between two statements ends the session after `patience` seconds; a message that stops half way, which the
    server does not take for silence, ends with the whole transaction after four times as long.
    """
    silence = max(1, round(patience * 1000))
    return {"idle_in_transaction_session_timeout": str(silence), "transaction_timeout": str(4 * silence)}


async def open_pool(url: str, *, size: int = 10, command_timeout: float = ANSWER, patience: float = PATIENCE) -> Any:
    """Open the pool; the caller closes it. Statements stay prepared, and their generic plans are used at once.

    All of them find their rows by keys: a plan that was made while a table was small must not read it whole for as
    long as the connection lives. A transaction in which this process falls silent for `patience` seconds is rolled
    back by the server.
    """
    return await asyncpg.create_pool(
        plain_url(url),
        min_size=1,
        max_size=size,
        command_timeout=command_timeout,
        timeout=CONNECT,
        max_inactive_connection_lifetime=300.0,
        statement_cache_size=512,
        max_cached_statement_lifetime=0,
        connection_class=_Connection,
        server_settings={
            "application_name": "company",
            "jit": "off",
            "plan_cache_mode": "force_generic_plan",
            "enable_seqscan": "off",
            **limits(patience),
        },
    )
