"""Where the company is that a command speaks to: named servers, a company that runs here, or one started for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TypeVar

from pydantic import SecretStr
from rich.text import Text

from backend.adapters.db import migrate
from backend.adapters.db.engine import Sessions, connect, sessions_of
from backend.adapters.llm.replay import Recordings
from backend.cli.screen import screen
from backend.domain.config import RunConfig
from backend.domain.ports import Bell
from backend.engine.embedded import Addresses, Stack, attach
from backend.engine.loader import Graphs
from backend.errors import Fault, Unavailable
from backend.operations import readiness, templates
from backend.settings import Settings

Result = TypeVar("Result")


@dataclass(frozen=True)
class Company:
    """An open company: its settings with addresses, sessions, bell and graphs."""

    settings: Settings
    sessions: Sessions
    bell: Bell
    graphs: Graphs

    def faults(self, config: RunConfig, brief: str) -> list[Fault]:
        """What keeps a run from beginning here."""
        roles = self.graphs.roles(config.graph)
        return readiness.faults(config, brief, recordings=Recordings(self.settings.home), roles=roles)


def with_addresses(settings: Settings, addresses: Addresses) -> Settings:
    """The settings with the servers that are really used."""
    found = {"database_url": SecretStr(addresses.database_url), "redis_url": SecretStr(addresses.redis_url)}
    return settings.model_copy(update=found)


async def prepare(settings: Settings) -> None:
    """Bring the database to the newest revision and load the templates that ship."""
    assert settings.database_url is not None
    url = settings.database_url.get_secret_value()
    await migrate.upgrade(url)
    engine = connect(url, pool_size=1)
    try:
        async with sessions_of(engine).begin() as session:
            await templates.load_built_ins(session)
    finally:
        await engine.dispose()


@contextmanager
def reached(settings: Settings) -> Iterator[Settings]:
    """Servers that answer: those that are named or running here, else those of this state directory, started for now.

    Raises `Unavailable` where there is neither a server nor a state directory with data.
    """
    found = attach(settings)
    if found is not None:
        yield with_addresses(settings, found)
        return
    if not (settings.home / "lock").exists():
        raise Unavailable(
            f"No company runs here and {settings.home} holds none: start one with `company up`, or name its servers in "
            "DATABASE_URL and REDIS_URL."
        )
    with ExitStack() as held:
        with screen(errors=True).status("Starting the database and the broker of this directory for a moment …"):
            stack = held.enter_context(Stack.start(settings))
            started = with_addresses(settings, stack.addresses)
            asyncio.run(prepare(started))
        yield started


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Company]:
    """The company at these addresses; closed at the end.

    Raises `Unavailable` for a database that this release must migrate first; of one that a newer release made it tells.
    """
    from backend.worker.bell import make_bell

    assert settings.database_url is not None
    engine = connect(settings.database_url.get_secret_value(), pool_size=3)
    bell = make_bell(settings)
    try:
        _check(await migrate.standing(engine))
        yield Company(settings, sessions_of(engine), bell, Graphs())
    finally:
        await bell.close()
        await engine.dispose()


def _check(found: migrate.Standing) -> None:
    if found.age == "older":
        raise Unavailable(found.sentence, code="database_too_old")
    if found.age == "newer":
        screen(errors=True).print(Text(found.sentence, style="yellow"), soft_wrap=True)


def do(work: Callable[[Company], Awaitable[Result]], settings: Settings | None = None) -> Result:
    """Do a command's work in a company that is reached for it."""

    async def inside(reached_settings: Settings) -> Result:
        async with opened(reached_settings) as company:
            return await work(company)

    with reached(settings or Settings()) as found:
        return asyncio.run(inside(found))
