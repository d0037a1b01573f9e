"""Group commit: what several runs of a process commit at the same time goes to the database in one statement.

Nothing waits for company: a commit that finds no other on its way leaves at once, and what comes while it is on its way
leaves together with the next.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from backend.adapters.db.checkpointer.sending import LOST_CONNECTION
from backend.adapters.db.commit import Next, save_next

_log = logging.getLogger(__name__)
_REST_SECONDS = 0.05
_MOST = 48
"""Checkpoints in one statement: none waits long for others' rows, and while some runs commit, the others compute."""
_SLOW_SECONDS = 0.1
"""A statement that takes longer waits for something, such as a lock that somebody holds: others go beside it."""


@dataclass(eq=False, slots=True)
class Queued:
    """A run's commit that waits for its statement, or is in one that is on its way."""

    checkpoints: Sequence[Next]
    """Each follows the one before."""
    instance: str
    landed: Callable[[bool], None]
    """Told once whether it was written; if not, it has to be tried by itself, to find out why it was left out."""
    sent: bool = False

    @property
    def ending(self) -> str | None:
        """The status that the run ends with."""
        return self.checkpoints[-1].ending


@dataclass(eq=False)
class GroupCommit:
    """The commits of all runs that share a pool: one statement at a time, up to `flights` where some are slow."""

    pool: Any
    flights: int = 2
    _slow: int = 0
    """Statements on their way that are slow."""
    _queue: deque[Queued] = field(default_factory=deque)
    _flying: set[asyncio.Task[None]] = field(default_factory=set)
    _resting: list[asyncio.Future[bool]] = field(default_factory=list)

    def put(self, checkpoints: Sequence[Next], *, instance: str, landed: Callable[[bool], None]) -> Queued:
        """Have a run's commit leave with the next statement; `landed`, which raises nothing, is told how it went."""
        queued = Queued(checkpoints, instance, landed)
        self._queue.append(queued)
        self._set_off()
        return queued

    def take_back(self, queued: Queued) -> bool:
        """Leave out a commit; False when it was sent, and lands all the same."""
        if queued.sent:
            return False
        self._queue.remove(queued)
        return True

    async def commit(self, one: Next, *, instance: str) -> bool:
        """Write a commit; returns whether it was written, as `landed` is told.

        Cancelled before it was sent, nothing of it is written; cancelled after, it first waits for the outcome.
        """
        written: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        queued = self.put([one], instance=instance, landed=written.set_result)
        try:
            return await asyncio.shield(written)
        except asyncio.CancelledError:
            if not self.take_back(queued):
                await asyncio.wait([written])
            raise

    @property
    def waiting(self) -> int:
        """How many commits wait for the next statement."""
        return len(self._queue)

    def _set_off(self) -> None:
        if not self._queue:
            return
        while self._resting:
            if _settle(self._resting.pop(), True):
                return
        if len(self._flying) < min(self.flights, 1 + self._slow):
            flight = asyncio.ensure_future(self._fly())
            self._flying.add(flight)
            flight.add_done_callback(self._landed)

    def _landed(self, flight: asyncio.Task[None]) -> None:
        self._flying.discard(flight)
        if not flight.cancelled() and (error := flight.exception()) is not None:
            if not isinstance(error, LOST_CONNECTION):
                _log.error("Shared commits failed in an unforeseen way, each goes by itself.", exc_info=error)
            while self._queue:
                _land(self._take(), frozenset())
        self._set_off()

    async def _fly(self) -> None:
        """Send what is queued and what comes soon after: a connection from the pool costs a tenth of a node's time."""
        async with self.pool.acquire() as connection:
            while True:
                if self._queue:
                    await self._send(connection)
                    if len(self._flying) > 1 + self._slow:
                        return
                elif not await self._rest():
                    return

    async def _rest(self) -> bool:
        """Wait a moment for another commit; False when none came, or when others could need the connection."""
        if self.pool.get_max_size() <= 2 * self.flights:
            return False
        called: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        timer = called.get_loop().call_later(_REST_SECONDS, _settle, called, False)
        self._resting.append(called)
        try:
            return await called
        finally:
            timer.cancel()

    async def _send(self, connection: Any) -> None:
        batch = self._take()
        written: frozenset[int] = frozenset()
        try:
            text, args = save_next([queued.checkpoints for queued in batch], instance=batch[0].instance)
            with self._watched():
                written = frozenset(row["n"] for row in await connection.fetch(text, *args))
        except (asyncpg.PostgresError, *LOST_CONNECTION) as error:
            # One of them is refused, or the connection is gone: each finds out by itself.
            _log.info("A shared commit of %s runs failed, each goes by itself: %s", len(batch), error)
            if isinstance(error, LOST_CONNECTION):
                raise
        finally:
            _land(batch, written)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Let another statement leave when this one is slow."""
        slow = False

        def late() -> None:
            nonlocal slow
            slow = True
            self._slow += 1
            self._set_off()

        timer = asyncio.get_running_loop().call_later(_SLOW_SECONDS, late)
        try:
            yield
        finally:
            timer.cancel()
            self._slow -= slow

    def _take(self) -> list[Queued]:
        """The first commits of the queue that end alike, in order."""
        first = self._queue[0]
        batch: list[Queued] = []
        left: deque[Queued] = deque()
        room = _MOST
        while self._queue:
            queued = self._queue.popleft()
            alike = queued.ending == first.ending and queued.instance == first.instance
            if alike and room > 0:
                batch.append(queued)
                room -= len(queued.checkpoints)
            else:
                left.append(queued)
        self._queue = left
        for queued in batch:
            queued.sent = True
        return batch


def _settle(future: asyncio.Future[bool], result: bool) -> bool:
    """Give a future its result; False when nobody waits for it any more."""
    if future.done():
        return False
    future.set_result(result)
    return True


def _land(batch: Iterable[Queued], written: Collection[int]) -> None:
    """Tell the commits of a statement, by their places in it, whether they were written."""
    for n, queued in enumerate(batch, 1):
        queued.landed(n in written)
