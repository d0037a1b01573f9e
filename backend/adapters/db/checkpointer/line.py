"""The commits of one run that are on their way, each right behind the one before it.

While a run gets on well this is one call from landing to leaving, with no task and hardly a future: with many runs in a
process, what a commit costs is the process's time, not the database's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from backend.adapters.crashes import crash_point
from backend.adapters.db.checkpointer.grouping import GroupCommit, Queued
from backend.adapters.db.commit import Next

_Turn = asyncio.Future[None]


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
        self._under_way: Write | None = None
        self._queued: Queued | None = None
        self._alone: asyncio.Task[None] | None = None
        self._behind: deque[tuple[Write, _Turn]] = deque()
        self._settling: list[_Turn] = []
        self._error: BaseException | None = None
        # What lands is told in the flight of whichever run set off first.
        self._context = copy_context()

    def add(self, write: Write) -> _Turn | None:
        """Have a commit leave as soon as the one before it is durable; returns when that is, if it is not yet.

        What is returned raises what the one before raised; cancelled, it takes nothing back.
        """
        if self._error is not None:
            raise self._error
        if self._under_way is None:
            self._leave(write)
            return None
        turn: _Turn = asyncio.get_running_loop().create_future()
        self._behind.append((write, turn))
        return turn

    async def settled(self) -> None:
        """Wait until all that was added is durable; raises what a commit raised."""
        if self._error is not None:
            raise self._error
        if self._under_way is not None:
            await self._end()

    async def take_back(self) -> None:
        """Let nothing leave any more; returns when there is an outcome of what was sent."""
        self._error = self._error or asyncio.CancelledError("The commit was taken back.")
        if self._queued is not None and self._group.take_back(self._queued):
            self._over()
        if self._alone is not None:
            self._alone.cancel()
        if self._under_way is not None:
            end = self._end()
            await asyncio.wait([end])
            # Whoever takes the run up asks the database how it went; asked here, nothing is logged about it.
            end.exception()

    def _end(self) -> _Turn:
        end: _Turn = asyncio.get_running_loop().create_future()
        self._settling.append(end)
        return end

    def _leave(self, write: Write) -> None:
        self._under_way = write
        crash_point("checkpoint")
        if write.following is None:
            self._try_alone(write)
        else:
            self._queued = self._group.put(write.following, instance=self._instance, landed=self._landed)

    def _landed(self, written: bool) -> None:
        write, self._queued = self._under_way, None
        assert write is not None
        if written:
            try:
                self._context.run(write.written)
            except Exception as error:  # noqa: BLE001 - the run raises it, not those it shared with
                self._over(error)
            else:
                self._over()
        elif self._error is not None:
            self._over()
        else:
            # The shared statement left it out: by itself it finds out why.
            self._try_alone(write)

    def _try_alone(self, write: Write) -> None:
        self._alone = asyncio.get_running_loop().create_task(write.by_itself(), context=self._context.copy())
        self._alone.add_done_callback(self._tried)

    def _tried(self, alone: asyncio.Task[None]) -> None:
        self._alone = None
        self._over(asyncio.CancelledError() if alone.cancelled() else alone.exception())

    def _over(self, error: BaseException | None = None) -> None:
        """Go on with the next commit, or with none after one that failed."""
        self._under_way, self._queued = None, None
        self._error = error = self._error or error
        if self._behind and error is None:
            write, turn = self._behind.popleft()
            self._leave(write)
            _tell(turn, None)
            return
        waiting = [turn for _, turn in self._behind] + self._settling
        self._behind.clear()
        self._settling.clear()
        for turn in waiting:
            _tell(turn, error)


def _tell(turn: _Turn, error: BaseException | None) -> None:
    if turn.done():
        return
    if error is None:
        turn.set_result(None)
    else:
        turn.set_exception(error)
