"""How alembic reaches the database: over asyncpg, one transaction a revision, one upgrade at a time.

The address is the config attribute `url` (given by `backend.adapters.db.migrate`) or, from alembic's own command
line, `DATABASE_URL` as the settings read it. An advisory lock of the connection lets any number of upgrades start at
once: the first does the work, the others find nothing left to do. Each revision commits by itself, so that nobody who
works meanwhile is kept waiting for tables that earlier revisions have changed, nor meets one locked after the other.
"""

from __future__ import annotations

import asyncio
from typing import Any

from alembic import context
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from backend.adapters.db import checkpoint_tables  # noqa: F401 - its tables belong to the metadata too
from backend.adapters.db.engine import asyncpg_url
from backend.adapters.db.tables import Table
from backend.errors import Unavailable
from backend.settings import Settings

MIGRATION_LOCK = 5_021_867_001
"""Key of the advisory lock; any number that nobody else uses in this database."""

COMPARISON: dict[str, Any] = {"compare_type": True, "compare_server_default": True}


def _url() -> str:
    given = context.config.attributes.get("url")
    if given is not None:
        return str(given)
    configured = Settings().database_url
    if configured is None:
        raise Unavailable("No database is named: set DATABASE_URL, or use `company migrate`.")
    return configured.get_secret_value()


def _migrate(connection: Connection) -> None:
    _take_turn(connection)
    try:
        context.configure(
            connection=connection, target_metadata=Table.metadata, transaction_per_migration=True, **COMPARISON
        )
        with context.begin_transaction():
            context.run_migrations()
    finally:
        connection.rollback()
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": MIGRATION_LOCK})
        connection.commit()


def _take_turn(connection: Connection) -> None:
    """Wait for another upgrade, for as long as it may take.

    Waiting for a table that is in use may not take long, since everybody who comes after a waiting ALTER TABLE waits,
    too: with what the revision does then nobody is blocked for two seconds.
    """
    connection.execute(text("SET lock_timeout = '120s'"))
    connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": MIGRATION_LOCK})
    connection.execute(text("SET lock_timeout = '1s'"))
    connection.commit()


async def _online() -> None:
    engine = create_async_engine(asyncpg_url(_url()), poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(_migrate)
    finally:
        await engine.dispose()


def _offline() -> None:
    context.configure(dialect_name="postgresql", target_metadata=Table.metadata, literal_binds=True, **COMPARISON)
    with context.begin_transaction():
        context.run_migrations()


given_connection = context.config.attributes.get("connection")
if context.is_offline_mode():
    _offline()
elif given_connection is not None:
    _migrate(given_connection)
else:
    asyncio.run(_online())
