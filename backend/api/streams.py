"""Live events: one feed a log in each process reads a row once, and every follower gets it from there.

Followers begin with the rows after the place that they know, so that nothing is missed or repeated wherever they come
from, at any time. Wake-ups make it fast, a poll every two seconds makes it sure. How rows are read in order, and when a
log ends, is the business of `event_logs`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from bisect import bisect_right
from collections.abc import AsyncIterator
from typing import Any, Generic
from uuid import UUID

from backend.adapters.db.engine import AWAY, Sessions
from backend.api.event_logs import Entry, Log, Look, P, Place, RunLog, TenantLog
from backend.api.installation import Followers

POLL_SECONDS = 2.0
COMMENT_SECONDS = 15.0
_KEPT = 1_000
_SENT_AT_ONCE = 8
_SOONEST = 0.05
_log = logging.getLogger(__name__)


class Streams:
    """All feeds of this process."""

    def __init__(self, sessions: Sessions, followers: Followers) -> None:
        """`sessions` give each statement a snapshot of its own (autocommit) where a tenant is followed."""
        self._sessions = sessions
        self._wakes = followers
        self._feeds: dict[tuple[str, UUID], _Feed[Any]] = {}
        self._closing = False

    def follow(self, run_id: UUID, after: int) -> AsyncIterator[Entry[int] | None]:
        """Every event after `after`, in order, until the run's last; None now and then, while nothing happens."""
        return self._follow(RunLog(self._sessions, run_id), after)

    def follow_tenant(self, tenant_id: UUID, after: Place | None) -> AsyncIterator[Entry[Place] | None]:
        """Every event of the tenant after a place (None: from the first), then live ones; None now and then."""
        return self._follow(TenantLog(self._sessions, tenant_id), after)

    async def _follow(self, log: Log[P], after: P | None) -> AsyncIterator[Entry[P] | None]:
        at = after
        while (seen := await self._look_patiently(log, at)) is not None:
            for number, entry in enumerate(seen.entries, 1):
                yield entry
                at = entry.place
                if number % _SENT_AT_ONCE == 0:
                    # Others get their turn, and a client that has dropped off is noticed.
                    await asyncio.sleep(0)
            if seen.ended:
                return
            if seen.whole:
                at = seen.upto
                async for item in self._live(log, at):
                    yield item
                    at = item.place if item is not None else at
                # The feed ended, or this follower fell behind it or stands before it: look at the rows again.
                await asyncio.sleep(log.rest)

    async def _live(self, log: Log[P], at: P) -> AsyncIterator[Entry[P] | None]:
        feed = self._join(log, at)
        try:
            woken = False
            while feed.holds_after(at):
                changed, fresh = feed.changed, feed.after(at)
                for entry in fresh:
                    yield entry
                    at = entry.place
                if feed.closed:
                    return
                if woken and not fresh:
                    yield None
                woken = changed is feed.changed
                if woken:
                    await changed.wait()
        finally:
            self._leave(feed)

    def _join(self, log: Log[P], at: P) -> _Feed[P]:
        feed: _Feed[P] | None = self._feeds.get(log.name)
        if feed is None or feed.closed:
            feed = self._feeds[log.name] = _Feed(log, at)
            feed.task = asyncio.create_task(self._feed(feed), name=f"feed {log.name}")
        feed.followers += 1
        return feed

    def _leave(self, feed: _Feed[Any]) -> None:
        feed.followers -= 1
        if feed.followers == 0:
            if self._feeds.get(feed.log.name) is feed:
                del self._feeds[feed.log.name]
            if feed.task is not None:
                feed.task.cancel()

    async def _feed(self, feed: _Feed[Any]) -> None:
        bell, pause = asyncio.Event(), _SOONEST
        listening = asyncio.create_task(self._listen(feed.log, bell))
        beating = asyncio.create_task(self._beat(feed))
        try:
            while not feed.closed:
                bell.clear()
                seen = await self._look_patiently(feed.log, feed.last)
                if seen is None:
                    return
                feed.add(seen.entries, closed=seen.ended)
                # What an open transaction holds back comes without a wake-up of its own.
                pause = _SOONEST if seen.entries else min(POLL_SECONDS, pause * 2)
                if seen.whole and not feed.closed:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(bell.wait(), pause if seen.held_back else POLL_SECONDS)
                    await asyncio.sleep(feed.log.rest)
        finally:
            feed.add((), closed=True)
            listening.cancel()
            beating.cancel()

    async def _beat(self, feed: _Feed[Any]) -> None:
        # One clock for all followers of the feed: a timer for each would cost more than the event.
        while not feed.closed:
            await asyncio.sleep(COMMENT_SECONDS)
            feed.beat()

    async def _listen(self, log: Log[Any], bell: asyncio.Event) -> None:
        async for _ in self._wakes.subscribe(log.wakes):
            bell.set()

    async def _look_patiently(self, log: Log[P], after: P | None) -> Look[P] | None:
        """Look again until the database answers: a follower outlives its restart."""
        while not self._closing:
            try:
                return await log.look(after)
            except AWAY as error:
                _log.warning("Events cannot be read at the moment: %s", type(error).__name__)
                await asyncio.sleep(POLL_SECONDS)
        return None

    async def close(self) -> None:
        """End all feeds, and with them the streams of this process."""
        self._closing = True
        tasks = [feed.task for feed in self._feeds.values() if feed.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Feed(Generic[P]):
    """The newest events of one log, read once for all followers of this process; every event after `_begins`."""

    def __init__(self, log: Log[P], begins: P) -> None:
        self.log = log
        self.closed = False
        self.followers = 0
        self.changed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self._begins: Any = begins
        self._kept: list[Entry[P]] = []

    @property
    def last(self) -> P:
        """The place of the newest event that is known here."""
        place: P = self._kept[-1].place if self._kept else self._begins
        return place

    def holds_after(self, place: Any) -> bool:
        """Whether every event after a place is here or will be."""
        return bool(place >= self._begins)

    def add(self, entries: tuple[Entry[P], ...], *, closed: bool) -> None:
        """Take new events in and tell the followers."""
        self._kept.extend(entries)
        if len(self._kept) > 2 * _KEPT:
            self._begins = self._kept[-_KEPT - 1].place
            del self._kept[:-_KEPT]
        self.closed = self.closed or closed
        if entries or closed:
            self.beat()

    def beat(self) -> None:
        """Let all followers look; without news they tell their clients that the line is open."""
        told, self.changed = self.changed, asyncio.Event()
        told.set()

    def after(self, place: Any) -> list[Entry[P]]:
        """The kept events after a place that is not before the feed begins."""
        if not self._kept or self._kept[-1].place <= place:
            return []
        return self._kept[bisect_right(self._kept, place, key=lambda entry: entry.place) :]
