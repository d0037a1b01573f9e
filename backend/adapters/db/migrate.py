"""The schema's revisions: bring a database to the newest one, take it back, and say where it stands.

Any number of upgrades may start at once on one database (see `migrations/env.py`). The revisions lie beside the
`backend` package, in a source tree and in an installed wheel alike.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a database stands, as this release sees it.

    A release works on the database of the next one, so that a rolling upgrade stops nobody; never on an older one.
    """

    revision: str | None
    age: Literal["older", "same", "newer"]

    @property
    def sentence(self) -> str:
        """Where it stands and what to do."""
        if self.revision is None:
            return "The database has no tables yet: run `company migrate`."
        if self.age == "older":
            return (
                f"The database stands at revision {self.revision}, this release needs {head()}: run `company migrate`."
            )
        if self.age == "same":
            return f"The database stands at revision {self.revision}."
        return (
            f"The database stands at revision {self.revision}, which a newer release made; this one knows {head()} and "
            "works on it only if it is the release before: install the newer one."
        )


async def standing(engine: AsyncEngine) -> Standing:
    """Where the database stands, compared with what this release knows."""
    at = await revision(engine)
    if at == head():
        return Standing(at, "same")
    return Standing(at, "older" if at is None or at in _known() else "newer")


def _known() -> set[str]:
    return {script.revision for script in ScriptDirectory.from_config(configuration()).walk_revisions()}


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
        found = await standing(engine)
    finally:
        await engine.dispose()
    if found.age == "newer":
        raise Unavailable(
            f"The database is at revision {found.revision}, which this release does not know (its newest is {head()}): "
            "install the release that made it, or use another database or COMPANY_HOME.",
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
