"""The commits of one run that are on their way, each right behind the one before it.

While a run gets on well this is one call from landing to leaving, with no task and hardly a future: with many runs in a
process, what a commit costs is the process's time, not the database's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from backend.adapters.crashes import crash_point
from backend.adapters.db.checkpointer.grouping import GroupCommit, Queued
from backend.adapters.db.commit import Next

_Turn = asyncio.Future[None]
MOST_BEHIND = 4
"""Checkpoints of a run that may wait for the commit that is on its way: what is computed again if the worker dies."""


@dataclass(slots=True)
class Write:
    """How a checkpoint is written: with other runs' as `following`, where that may be and works, else by itself."""

    following: Next | None
    by_itself: Callable[[], Coroutine[Any, Any, None]]
    written: Callable[[], None]
    """What the run does about a checkpoint that became durable with others'."""


class Line:
    """A run's commits in order, which ends with the first that failed: none may come after it."""

    def __init__(self, group: GroupCommit, instance: str) -> None:
        self._group = group
        self._instance = instance
        self._under_way: Sequence[Write] = ()
        self._queued: Queued | None = None
        self._alone: asyncio.Task[None] | None = None
        self._behind: deque[Write] = deque()
        self._turns: list[_Turn] = []
        self._settling: list[_Turn] = []
        self._error: BaseException | None = None
        # What lands is told in the flight of whichever run set off first.
        self._context = copy_context()

    def add(self, write: Write) -> _Turn | None:
        """Have a checkpoint leave as soon as those before it are durable, with what else waits for that.

        Returns when there is room for another one, if there is none yet; what is returned raises what a commit before
        raised, and takes nothing back when it is cancelled.
        """
        if self._error is not None:
            raise self._error
        self._behind.append(write)
        if not self._under_way:
            self._leave()
        if len(self._behind) < MOST_BEHIND:
            return None
        turn: _Turn = asyncio.get_running_loop().create_future()
        self._turns.append(turn)
        return turn

    async def settled(self) -> None:
        """Wait until all that was added is durable; raises what a commit raised."""
        if self._error is not None:
            raise self._error
        if self._under_way:
            await self._end()

    async def take_back(self) -> None:
        """Let nothing leave any more; returns when there is an outcome of what was sent."""
        self._error = self._error or asyncio.CancelledError("The commit was taken back.")
        if self._queued is not None and self._group.take_back(self._queued):
            self._over()
        if self._alone is not None:
            self._alone.cancel()
        if self._under_way:
            end = self._end()
            await asyncio.wait([end])
            # Whoever takes the run up asks the database how it went; asked here, nothing is logged about it.
            end.exception()

    def _end(self) -> _Turn:
        end: _Turn = asyncio.get_running_loop().create_future()
        self._settling.append(end)
        return end

    def _leave(self) -> None:
        """Send off the first that waits, and with it those after it that may share its commit."""
        write = self._behind.popleft()
        writes, checkpoints = [write], [write.following]
        while self._behind and _may_precede(checkpoints[-1], self._behind[0].following):
            writes.append(self._behind.popleft())
            checkpoints.append(writes[-1].following)
        self._under_way = writes
        for _ in writes:
            crash_point("checkpoint")
        if write.following is None:
            self._try_alone()
        else:
            together = [one for one in checkpoints if one is not None]
            self._queued = self._group.put(together, instance=self._instance, landed=self._landed)

    def _landed(self, written: bool) -> None:
        self._queued = None
        if written:
            try:
                for write in self._under_way:
                    self._context.run(write.written)
            except Exception as error:  # noqa: BLE001 - the run raises it, not those it shared with
                self._over(error)
            else:
                self._over()
        elif self._error is not None:
            self._over()
        else:
            # The shared statement left it out: by itself it finds out why.
            self._try_alone()

    def _try_alone(self) -> None:
        self._alone = asyncio.get_running_loop().create_task(self._each_by_itself(), context=self._context.copy())
        self._alone.add_done_callback(self._tried)

    async def _each_by_itself(self) -> None:
        for write in self._under_way:
            await write.by_itself()

    def _tried(self, alone: asyncio.Task[None]) -> None:
        self._alone = None
        self._over(asyncio.CancelledError() if alone.cancelled() else alone.exception())

    def _over(self, error: BaseException | None = None) -> None:
        """Go on with what waits, or with nothing after a commit that failed."""
        self._under_way, self._queued = (), None
        self._error = error = self._error or error
        if self._behind and error is None:
            self._leave()
            waiting = []
        else:
            self._behind.clear()
            waiting, self._settling = self._settling, []
        if len(self._behind) < MOST_BEHIND:
            waiting += self._turns
            self._turns = []
        for turn in waiting:
            _tell(turn, error)


def _may_precede(one: Next | None, other: Next | None) -> bool:
    return one is not None and other is not None and one.may_precede(other)


def _tell(turn: _Turn, error: BaseException | None) -> None:
    if turn.done():
        return
    if error is None:
        turn.set_result(None)
    else:
        turn.set_exception(error)
