"""The schema's revisions: bring a database to the newest one, take it back, and say where it stands.

Any number of upgrades may start at once on one database (see `migrations/env.py`). The revisions lie beside the
`backend` package, in a source tree and in an installed wheel alike.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

import backend
from backend.adapters.db.engine import asyncpg_url
from backend.errors import Unavailable

ATTEMPTS = 30
"""Tries of an upgrade that finds a table in use, a second apart."""

_LOCK_NOT_AVAILABLE = "55P03"


def configuration() -> Config:
    """Alembic's configuration without an ini file."""
    config = Config()
    config.set_main_option("script_location", str(Path(backend.__file__).parents[1] / "migrations").replace("%", "%%"))
    return config


def head() -> str:
    """The newest revision that this installation knows."""
    newest = ScriptDirectory.from_config(configuration()).get_current_head()
    assert newest is not None
    return newest


async def revision(engine: AsyncEngine) -> str | None:
    """The revision the database stands at; None when it was never migrated."""

    def read(connection: Connection) -> str | None:
        return MigrationContext.configure(connection).get_current_revision()

    async with engine.connect() as connection:
        return await connection.run_sync(read)


async def upgrade(url: str, *, to: str = "head") -> None:
    """Bring the database to a revision; nothing happens when it is there already.

    Raises `Unavailable` when a table stays in use, so that an upgrade never holds the company up, and for a database
    that a newer release has migrated.
    """
    await _refuse_what_is_unknown(url)
    for _ in range(ATTEMPTS):
        try:
            await _run(url, lambda config: command.upgrade(config, to))
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
                raise
            await asyncio.sleep(1)
        else:
            return
    raise Unavailable(
        f"The database could not be migrated: a table was in use for {ATTEMPTS} tries. Find the long transaction in "
        "pg_stat_activity, end it and migrate again."
    )


async def _refuse_what_is_unknown(url: str) -> None:
    engine = create_async_engine(asyncpg_url(url), poolclass=NullPool)
    try:
        at = await revision(engine)
    finally:
        await engine.dispose()
    known = {script.revision for script in ScriptDirectory.from_config(configuration()).walk_revisions()}
    if at is not None and at not in known:
        raise Unavailable(
            f"The database is at revision {at}, which this release does not know (its newest is {head()}): install the "
            "release that made it, or use another database or COMPANY_HOME.",
            code="database_too_new",
        )


async def downgrade(url: str, *, to: str) -> None:
    """Take the database back to an older revision, or to `base`: the tables and everything in them are dropped."""
    await _run(url, lambda config: command.downgrade(config, to))


async def _run(url: str, work: Callable[[Config], None]) -> None:
    engine = create_async_engine(asyncpg_url(url), poolclass=NullPool)

    def step(connection: Connection) -> None:
        config = configuration()
        config.attributes["connection"] = connection
        work(config)

    try:
        async with engine.connect() as connection:
            await connection.run_sync(step)
            await connection.commit()
    finally:
        await engine.dispose()
