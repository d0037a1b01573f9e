"""How the parts are without which nothing works: database, broker, storage, workers. Every look is bounded in time."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from backend.adapters import vitals
from backend.adapters.db import migrate
from backend.adapters.db.engine import AWAY

SECONDS = 5.0
NEEDED_VERSION = 18
LOW_BYTES = 2_000_000_000
FULL_BYTES = 200_000_000

_FACTS = text("""
SELECT current_setting('server_version') AS version, current_setting('server_version_num')::int / 10000 AS major,
    current_setting('fsync') AS fsync, pg_database_size(current_database()) AS bytes
""")
_TROUBLE = text("SELECT (SELECT count(*) FROM v_ledger_check) AS ledger, (SELECT count(*) FROM v_stuck_runs) AS stuck")


@dataclass(frozen=True, slots=True)
class Check:
    """How one part is, in a sentence, and what to do about it."""

    name: str
    status: Literal["ok", "warn", "fail"]
    sentence: str
    advice: str | None = None


async def essentials(engine: AsyncEngine, redis_url: str, home: Path) -> list[Check]:
    """The parts without which no run can be started or followed."""
    return [*await asyncio.gather(database(engine), broker(redis_url)), storage(home)]


def failed(checks: Sequence[Check]) -> bool:
    """Whether any part has failed."""
    return any(check.status == "fail" for check in checks)


async def database(engine: AsyncEngine) -> Check:
    """Reachable, new enough, and migrated at least as far as this release needs."""
    try:
        async with asyncio.timeout(SECONDS), engine.connect() as connection:
            return await _examine(connection, await migrate.standing(engine))
    except AWAY as error:
        said = str(getattr(error, "orig", None) or error).splitlines()
        return Check(
            "database",
            "fail",
            f"The database cannot be reached: {said[0] if said else 'no answer in time'}.",
            "Start it, or set DATABASE_URL to one that runs.",
        )


async def _examine(connection: AsyncConnection, found: migrate.Standing) -> Check:
    facts: dict[str, Any] = dict((await connection.execute(_FACTS)).mappings().one())
    name = f"PostgreSQL {facts['version']}"
    if facts["major"] < NEEDED_VERSION:
        return Check(
            "database", "fail", f"{name} is too old.", f"Set DATABASE_URL to version {NEEDED_VERSION} or newer."
        )
    if found.age == "older":
        stands = f"stands at revision {found.revision}" if found.revision else "has no tables yet"
        return Check("database", "fail", f"{name} {stands}.", "Run `company migrate`.")
    if found.age == "newer":
        # No failure: the release before must go on serving while a newer one is rolled out.
        sentence = f"{name} stands at revision {found.revision}, which a newer release made."
        return Check("database", "warn", sentence, "Install the newer release here too.")
    if facts["fsync"] != "on":
        return Check("database", "warn", f"{name} runs with fsync off: a power cut loses data.", "Set fsync = on.")
    size = f"{facts['bytes'] / 1e6:.0f} MB"
    return Check("database", "ok", f"{name} is at revision {found.revision} and holds {size}.")


async def books(engine: AsyncEngine) -> Check:
    """Whether all totals are the sums of their calls, and every run that is on its way moves.

    It reads every call that was ever made, and says nothing of whether requests can be served: no part of readiness.
    """
    try:
        async with asyncio.timeout(SECONDS), engine.connect() as connection:
            trouble = (await connection.execute(_TROUBLE)).mappings().one()
    except AWAY as error:
        said = str(getattr(error, "orig", None) or error).splitlines()
        sentence = f"The books were not looked through: {said[0] if said else f'that takes over {SECONDS:.0f} s'}."
        return Check("books", "warn", sentence, "Let `company doctor --deep` take its time.")
    if trouble["ledger"]:
        count = trouble["ledger"]
        return Check("books", "fail", f"{count} totals differ from their calls.", "Read the view v_ledger_check.")
    if trouble["stuck"]:
        return Check("books", "warn", f"{trouble['stuck']} runs do not move.", "Read the view v_stuck_runs.")
    return Check("books", "ok", "Every total is the sum of its calls, and every run moves.")


async def broker(redis_url: str) -> Check:
    """Reachable, and it takes the password."""
    client = vitals.client(redis_url)
    try:
        async with asyncio.timeout(SECONDS):
            version = (await client.info("server"))["redis_version"]
            return Check("broker", "ok", f"The broker answers (Redis protocol, version {version}).")
    except (RedisError, OSError, TimeoutError) as error:
        return Check(
            "broker",
            "fail",
            f"The broker cannot be reached: {str(error).rstrip('.') or 'no answer in time'}.",
            "Start it, or set REDIS_URL to one that runs. Nothing is lost meanwhile: runs wait in the database.",
        )
    finally:
        await client.aclose()


async def workers(redis_url: str) -> Check:
    """Whether anybody is there to take runs up."""
    client = vitals.client(redis_url)
    try:
        living = await vitals.collect(client)
    finally:
        await client.aclose()
    if not living:
        return Check("workers", "warn", "No worker tells of itself.", "Run `company up`, or start a worker.")
    return Check("workers", "ok", f"{len(living)} worker{'s' if len(living) > 1 else ''}: {', '.join(sorted(living))}.")


def storage(home: Path) -> Check:
    """The state directory can be written, and there is room."""
    existing = next(path for path in (home.resolve(), *home.resolve().parents) if path.exists())
    try:
        free = shutil.disk_usage(existing).free
        if home.exists():
            probe = home / ".write-check"
            probe.touch()
            probe.unlink()
        elif not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{existing} is no directory")
        elif not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"nothing can be made in {existing}")
    except OSError as error:
        return Check(
            "storage",
            "fail",
            f"The state directory {home} cannot be written: {error.strerror}.",
            "Give it to this user, or set COMPANY_HOME.",
        )
    sentence = f"{free / 1e9:.1f} GB are free for {home}."
    if free < FULL_BYTES:
        return Check("storage", "fail", sentence, "Free some space: repositories and the database would not fit.")
    if free < LOW_BYTES:
        return Check("storage", "warn", sentence, "Free some space before it runs out.")
    return Check("storage", "ok", sentence)
