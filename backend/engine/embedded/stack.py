"""The embedded stack: PostgreSQL and Valkey for one machine, started, shared and stopped as one.

What the settings name is used as it is; only what they do not name is started.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from backend.engine.embedded import broker, database, place, state
from backend.engine.embedded.broker import Broker
from backend.engine.embedded.database import Postgres
from backend.engine.embedded.state import Addresses
from backend.settings import Settings


@dataclass(frozen=True)
class Stack:
    """The servers of a state directory that this process holds; leaving it stops what it started."""

    home: Path
    addresses: Addresses
    postgres: Postgres | None
    broker: Broker | None
    _held: ExitStack

    @classmethod
    def start(cls, settings: Settings, *, durable: bool = True) -> Stack:
        """Hold the state directory and start its servers; they take connections when this returns.

        Call it from the main thread: the kernel ends the servers when the thread that started them ends.
        `durable=False` is for tests: an operating system that crashes may take the data with it.
        Raises `Unavailable` with a sentence that says what is in the way.
        """
        assert threading.current_thread() is threading.main_thread(), "Start the stack from the main thread."
        home = state.prepare(settings.home)
        with ExitStack() as held:
            held.enter_context(state.held(home))
            servers: tuple[Postgres | None, Broker | None] = (None, None)
            if settings.database_url is None or settings.redis_url is None:
                servers = _start_servers(settings, home, held, durable=durable)
            addresses = _addresses(settings, *servers)
            state.publish(home, addresses)
            return cls(home, addresses, *servers, held.pop_all())

    @property
    def database_url(self) -> str:
        """Where the database is, password included."""
        return self.addresses.database_url

    @property
    def redis_url(self) -> str:
        """Where the broker is, password included."""
        return self.addresses.redis_url

    def stop(self) -> None:
        """Stop what was started, let go of the state directory; stopping twice is the same as once."""
        self._held.close()

    def __enter__(self) -> Self:
        """Return the running stack."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self.stop()


def attach(settings: Settings) -> Addresses | None:
    """Where the servers of this installation are: as the settings say, or those of the company that runs here.

    None when neither is the case: start a `Stack` then.
    """
    named = settings.database_url, settings.redis_url
    if named[0] is not None and named[1] is not None:
        return Addresses(named[0].get_secret_value(), named[1].get_secret_value())
    if not settings.home.is_dir():
        return None
    return state.published(settings.home.resolve())


def _start_servers(
    settings: Settings, home: Path, held: ExitStack, *, durable: bool
) -> tuple[Postgres | None, Broker | None]:
    spot = place.find(home)
    spot.prepare()
    logs = home / "logs"
    postgres = redis = None
    if settings.database_url is None:
        postgres = database.start(spot, logs, durable=durable)
        held.callback(postgres.stop)
    if settings.redis_url is None:
        redis = broker.start(spot, logs)
        held.callback(redis.stop)
    return postgres, redis


def _addresses(settings: Settings, postgres: Postgres | None, redis: Broker | None) -> Addresses:
    database_url = postgres.url if postgres else settings.database_url and settings.database_url.get_secret_value()
    redis_url = redis.url if redis else settings.redis_url and settings.redis_url.get_secret_value()
    assert database_url and redis_url
    return Addresses(database_url, redis_url)
