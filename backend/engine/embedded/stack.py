"""The embedded stack: PostgreSQL and Valkey for one machine, started, shared and stopped as one.

What the settings name is used as it is; only what they do not name is started.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from backend.engine.embedded import broker, database, place, state
from backend.engine.embedded.broker import Broker
from backend.engine.embedded.database import Postgres
from backend.engine.embedded.keeper import Keeper, Starter
from backend.engine.embedded.state import Addresses
from backend.errors import Unavailable
from backend.settings import Settings


@dataclass(frozen=True)
class Stack:
    """The servers of a state directory that this process holds; leaving it stops what it started."""

    home: Path
    addresses: Addresses
    _keeper: Keeper
    _held: ExitStack

    @classmethod
    def start(cls, settings: Settings, *, durable: bool = True) -> Stack:
        """Hold the state directory and start its servers; they take connections when this returns.

        A server that ends by itself is started again where it was. `durable=False` is for tests: an operating system
        that crashes may take the data with it. Raises `Unavailable` with a sentence that says what is in the way.
        """
        check(settings)
        home = state.prepare(settings.home)
        with ExitStack() as held:
            held.enter_context(state.held(home))
            keeper = Keeper(_starters(settings, home, durable=durable))
            held.callback(keeper.stop)
            keeper.start()
            addresses = _addresses(settings, keeper)
            state.publish(home, addresses)
            return cls(home, addresses, keeper, held.pop_all())

    @property
    def postgres(self) -> Postgres | None:
        """The database server, if it is ours."""
        return next((server for server in self._keeper.servers if isinstance(server, Postgres)), None)

    @property
    def broker(self) -> Broker | None:
        """The broker, if it is ours."""
        return next((server for server in self._keeper.servers if isinstance(server, Broker)), None)

    @property
    def database_url(self) -> str:
        """Where the database is, password included."""
        return self.addresses.database_url

    @property
    def redis_url(self) -> str:
        """Where the broker is, password included."""
        return self.addresses.redis_url

    def announce(self, api_url: str) -> None:
        """Let other commands know where the api of this company is."""
        state.publish(self.home, replace(self.addresses, api_url=api_url))

    def stop(self) -> None:
        """Stop what was started, let go of the state directory; stopping twice is the same as once."""
        self._held.close()

    def __enter__(self) -> Self:
        """Return the running stack."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self.stop()


def check(settings: Settings) -> None:
    """Raise `Unavailable` for a DATABASE_URL or REDIS_URL that names no server of its kind; neither is repeated."""
    for name, url, example in (
        ("DATABASE_URL", settings.database_url, "postgresql://user:password@host:5432/database"),
        ("REDIS_URL", settings.redis_url, "redis://host:6379/0"),
    ):
        if url is not None and not _fits(url.get_secret_value(), example.partition("://")[0]):
            raise Unavailable(f"{name} is no address that can be used here: write it as {example}, or unset it.")


def _fits(url: str, kind: str) -> bool:
    try:
        parts = urlsplit(url)
        port_fits = parts.port is None or parts.port > 0
    except ValueError:
        return False
    kinds = {"postgresql": {"postgresql", "postgres"}, "redis": {"redis", "rediss", "unix"}}[kind]
    return parts.scheme in kinds and port_fits


def attach(settings: Settings) -> Addresses | None:
    """Where the servers of this installation are: as the settings say, or those of the company that runs here.

    None when neither is the case: start a `Stack` then. Raises `Unavailable` for an address of another kind.
    """
    check(settings)
    named = settings.database_url, settings.redis_url
    if named[0] is not None and named[1] is not None:
        return Addresses(named[0].get_secret_value(), named[1].get_secret_value())
    if not settings.home.is_dir():
        return None
    return state.published(settings.home.resolve())


def is_up(settings: Settings) -> bool:
    """Whether a company holds the state directory: it has workers, which named servers alone need not have."""
    return settings.home.is_dir() and state.is_held(settings.home.resolve())


def api_of(settings: Settings) -> str:
    """Where the api of the company that holds the state directory is; empty where there is none, or not yet."""
    found = state.published(settings.home.resolve()) if is_up(settings) else None
    return found.api_url if found is not None else ""


def _starters(settings: Settings, home: Path, *, durable: bool) -> list[Starter]:
    if settings.database_url is not None and settings.redis_url is not None:
        return []
    spot = place.find(home)
    spot.prepare()
    starters: list[Starter] = []
    if settings.database_url is None:
        starters.append(partial(database.start, spot, home / "logs", durable=durable))
    if settings.redis_url is None:
        starters.append(partial(broker.start, spot, home / "logs"))
    return starters


def _addresses(settings: Settings, keeper: Keeper) -> Addresses:
    own = {type(server): server.url for server in keeper.servers if isinstance(server, Postgres | Broker)}
    database_url = own.get(Postgres) or (settings.database_url and settings.database_url.get_secret_value())
    redis_url = own.get(Broker) or (settings.redis_url and settings.redis_url.get_secret_value())
    assert database_url and redis_url
    return Addresses(database_url, redis_url)
