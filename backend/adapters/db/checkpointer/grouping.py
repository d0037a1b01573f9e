"""Group commit: what several runs of a process commit at the same time goes to the database in one statement.

Nothing waits for company: a commit that finds no other on its way leaves at once, and what comes while it is on its way
leaves together with the next.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from backend.adapters.db.checkpointer.sending import LOST_CONNECTION
from backend.adapters.db.commit import Next, save_next

_log = logging.getLogger(__name__)
_MOST = 16
"""Commits in one statement: none waits long for the others' rows, and while some runs commit, the others compute."""


@dataclass(eq=False, slots=True)
class _Queued:
    one: Next
    instance: str
    written: asyncio.Future[bool]
    sent: bool = False
    landed: bool = False

    def land(self, written: bool) -> None:
        """Tell the outcome to whoever still waits for it."""
        self.landed = True
        if not self.written.done():
            self.written.set_result(written)


@dataclass(eq=False)
class GroupCommit:
    """The commits of all runs that share a pool, on at most `flights` connections at once."""

    pool: Any
    flights: int = 2
    _queue: deque[_Queued] = field(default_factory=deque)
    _flying: set[asyncio.Task[None]] = field(default_factory=set)

    async def commit(self, one: Next, *, instance: str) -> bool:
        """Write a commit; False when it has to be tried by itself, to find out why the shared statement left it out.

        Cancelled before it was sent, nothing of it is written; cancelled after, it first waits for the outcome.
        """
        queued = _Queued(one, instance, asyncio.get_running_loop().create_future())
        self._queue.append(queued)
        self._set_off()
        try:
            return await queued.written
        except asyncio.CancelledError:
            if not queued.sent:
                self._queue.remove(queued)
            elif not queued.landed:
                # The cancellation took the first future with it.
                queued.written = asyncio.get_running_loop().create_future()
                await queued.written
            raise

    @property
    def waiting(self) -> int:
        """How many commits wait for the next statement."""
        return len(self._queue)

    def _set_off(self) -> None:
        if self._queue and len(self._flying) < self.flights:
            flight = asyncio.ensure_future(self._fly())
            self._flying.add(flight)
            flight.add_done_callback(self._landed)

    def _landed(self, flight: asyncio.Task[None]) -> None:
        self._flying.discard(flight)
        if not flight.cancelled() and (error := flight.exception()) is not None:
            _log.error("A shared commit failed in an unforeseen way, each goes by itself.", exc_info=error)
        self._set_off()

    async def _fly(self) -> None:
        while self._queue:
            batch = self._take()
            written: frozenset[int] = frozenset()
            try:
                written = await self._send(batch)
            except (asyncpg.PostgresError, *LOST_CONNECTION) as error:
                # One of them is refused, or the connection is gone: each finds out by itself.
                _log.info("A shared commit of %s runs failed, each goes by itself: %s", len(batch), error)
            finally:
                for n, queued in enumerate(batch, 1):
                    queued.land(n in written)

    def _take(self) -> list[_Queued]:
        """The first commits of the queue that end alike, in order."""
        first = self._queue[0]
        batch: list[_Queued] = []
        left: deque[_Queued] = deque()
        while self._queue:
            queued = self._queue.popleft()
            alike = queued.one.ending == first.one.ending and queued.instance == first.instance
            (batch if alike and len(batch) < _MOST else left).append(queued)
        self._queue = left
        for queued in batch:
            queued.sent = True
        return batch

    async def _send(self, batch: list[_Queued]) -> frozenset[int]:
        text, args = save_next([queued.one for queued in batch], instance=batch[0].instance)
        rows = await self.pool.fetch(text, *args)
        return frozenset(row["n"] for row in rows)
