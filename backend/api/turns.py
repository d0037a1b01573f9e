"""Who may change something next: requests for the same thing one after the other, and a few at once in all.

A command that waits for a row's lock keeps a connection from everybody else, and those who hold locks get slower the
more there are of them, since one process computes for all: two hundred who steer one run made each other wait longer
than a statement may take. So they wait here, in the order they came, and hold nothing while they do. How long is up to
the database: as long as it answers anybody, everybody gets a turn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic

from backend.errors import CompanyError, Unavailable

AT_ONCE = 8
"""Commands at once in this process: fewer than the pool has connections, so that who only reads finds one."""
PATIENCE = 20.0
"""Seconds without an answer for anybody after which the database is away for those who wait."""


class Turns:
    """The queue of one process, for its event loop."""

    def __init__(
        self, at_once: int = AT_ONCE, patience: float = PATIENCE, clock: Callable[[], float] = monotonic
    ) -> None:
        self._free, self._patience, self._clock = at_once, patience, clock
        self._taken: set[str] = set()
        self._waiting: deque[tuple[str | None, asyncio.Future[None]]] = deque()
        self._answered = self._clock()

    @asynccontextmanager
    async def turn(self, thing: str | None) -> AsyncIterator[None]:
        """Wait for a turn at a thing (None: at nothing that others want), and hold it.

        Raises `Unavailable` when the database answers nobody any more.
        """
        await self._wait(thing)
        try:
            yield
        except CompanyError:
            self._answered = self._clock()
            raise
        else:
            self._answered = self._clock()
        finally:
            self._give_back(thing)

    async def _wait(self, thing: str | None) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((thing, place))
        self._admit()
        began = self._clock()
        try:
            while not place.done():
                left = max(began, self._answered) + self._patience - self._clock()
                if left <= 0:
                    raise Unavailable("The database answers nobody at the moment; ask again soon.")
                await asyncio.wait({place}, timeout=left)
        except BaseException:
            if place.done():
                self._give_back(thing)
            else:
                self._waiting.remove((thing, place))
            raise

    def _give_back(self, thing: str | None) -> None:
        self._free += 1
        if thing is not None:
            self._taken.discard(thing)
        self._admit()

    def _admit(self) -> None:
        """Let go on who came first among those whose thing is free."""
        for entry in list(self._waiting) if self._free else ():
            thing, place = entry
            if thing in self._taken:
                continue
            self._waiting.remove(entry)
            self._free -= 1
            if thing is not None:
                self._taken.add(thing)
            place.set_result(None)
            if not self._free:
                return
