"""The commits of one run that are on their way, each right behind the one before it.

While a run gets on well this is callbacks and no task: with many runs in a process, what a commit costs is the
process's time, not the database's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from backend.adapters.crashes import crash_point
from backend.adapters.db.checkpointer.grouping import GroupCommit, Queued
from backend.adapters.db.commit import Next

Outcome = asyncio.Future[None]
"""Done when a commit is durable; it raises why it is not, and is cancelled when it was taken back."""


@dataclass(slots=True)
class Write:
    """How a checkpoint is written: with other runs' as `following`, where that may be and works, else by itself."""

    following: Next | None
    by_itself: Callable[[], Awaitable[None]]
    written: Callable[[], None]
    """What the run does about a checkpoint that became durable with others'."""


class Line:
    """A run's commits in order: one that failed stays at its end, since none may come after it."""

    def __init__(self, group: GroupCommit, instance: str) -> None:
        self._group = group
        self._instance = instance
        self._last: Outcome | None = None
        self._queued: Queued | None = None
        self._alone: asyncio.Future[None] | None = None
        self._closed = False

    def add(self, write: Write) -> Outcome | None:
        """Have a commit leave as soon as the one before it is durable; returns when that is, if it is not yet.

        What is returned raises what the one before raised, and may be cancelled: that takes nothing back.
        """
        loop = asyncio.get_running_loop()
        before, self._last = self._last, loop.create_future()
        outcome = self._last
        if before is None or before.done():
            self._follow(before, write, outcome)
            return None
        turn: Outcome = loop.create_future()

        def come(before: Outcome) -> None:
            self._follow(before, write, outcome)
            if not turn.done() and not _passed_on(before, turn):
                turn.set_result(None)

        before.add_done_callback(come)
        return turn

    async def settled(self) -> None:
        """Wait until all that was added is durable; raises what a commit raised."""
        last = self._last
        if last is None:
            return
        await asyncio.shield(last)
        if self._last is last:
            self._last = None

    async def take_back(self) -> None:
        """Let nothing leave any more; returns when there is an outcome of what was sent."""
        self._closed = True
        if self._queued is not None:
            self._group.take_back(self._queued)
        if self._alone is not None:
            self._alone.cancel()
        if self._last is not None:
            await asyncio.wait([self._last])
            # Whoever takes the run up asks the database how it went; asked here, nothing is logged about it.
            _ = self._last.cancelled() or self._last.exception()

    def _follow(self, before: Outcome | None, write: Write, outcome: Outcome) -> None:
        if before is not None and _passed_on(before, outcome):
            return
        if self._closed:
            outcome.cancel()
            return
        crash_point("checkpoint")
        if write.following is None:
            self._try_alone(write, outcome)
            return
        self._queued = self._group.put(write.following, instance=self._instance)
        self._queued.written.add_done_callback(lambda written: self._landed(written, write, outcome))

    def _landed(self, written: asyncio.Future[bool], write: Write, outcome: Outcome) -> None:
        self._queued = None
        if written.cancelled():
            outcome.cancel()
        elif not written.result():
            self._try_alone(write, outcome)
        else:
            try:
                write.written()
            except Exception as error:  # noqa: BLE001 - whoever waits for the outcome raises it
                outcome.set_exception(error)
            else:
                outcome.set_result(None)

    def _try_alone(self, write: Write, outcome: Outcome) -> None:
        """The shared statement left it out or cannot hold it."""
        if self._closed:
            outcome.cancel()
            return
        self._alone = asyncio.ensure_future(write.by_itself())

        def over(alone: asyncio.Future[None]) -> None:
            self._alone = None
            if not _passed_on(alone, outcome):
                outcome.set_result(None)

        self._alone.add_done_callback(over)


def _passed_on(before: asyncio.Future[None], outcome: Outcome) -> bool:
    """Let a commit end as one did that failed or was taken back; False when that one is durable."""
    if before.cancelled():
        outcome.cancel()
    elif (error := before.exception()) is not None:
        outcome.set_exception(error)
    else:
        return False
    return True
