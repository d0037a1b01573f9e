"""Live events of runs: one feed a run in each process reads a row once, and every follower gets it from there.

Followers begin with the rows after their last `seq`, so that nothing is missed or repeated wherever they come from, at
any time in the life of a run. Wake-ups make it fast, a poll every two seconds makes it sure.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import islice
from typing import Any
from uuid import UUID

from sqlalchemy import Text, cast, func, literal_column, select
from sqlalchemy.exc import SQLAlchemyError

from backend.adapters.db.engine import Sessions
from backend.adapters.db.tables import Event, ProjectRun
from backend.api.installation import Followers
from backend.domain.ids import DEFAULT_TENANT
from backend.domain.run import ENDED
from backend.operations import timeline

POLL_SECONDS = 2.0
COMMENT_SECONDS = 15.0
_KEPT = 1_000
_BATCH = 500
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """One event as it is sent."""

    seq: int
    type: str
    data: str

    def frame(self) -> bytes:
        """As a server-sent event; JSON made by Postgres holds no line breaks."""
        return f"id: {self.seq}\nevent: {self.type}\ndata: {self.data}\n\n".encode()


@dataclass(frozen=True, slots=True)
class Glance:
    """Where a run's log stands, and what came after what was known."""

    last_seq: int
    ended: bool
    entries: tuple[Entry, ...]

    def is_the_end(self, seq: int) -> bool:
        """Whether nothing follows after `seq`, now or ever (unless the run is retried)."""
        return self.ended and seq >= self.last_seq


async def glance(sessions: Sessions, run_id: UUID, after: int, *, tenant_id: UUID = DEFAULT_TENANT) -> Glance | None:
    """One statement: the run's place and its next events; None when the tenant has no such run."""
    shown = (
        select(*timeline.VIEW.shown).where(Event.run_id == run_id, Event.seq > after).order_by(Event.seq).limit(_BATCH)
    )
    rows = shown.subquery("x")
    where = (ProjectRun.id == run_id, ProjectRun.tenant_id == tenant_id)
    run = select(ProjectRun.status, ProjectRun.event_seq).where(*where).subquery("run")
    query = (
        select(
            run.c.status, run.c.event_seq, rows.c.seq, rows.c.type, cast(func.row_to_json(literal_column("x")), Text)
        )
        .select_from(run.outerjoin(rows, literal_column("true")))
        .order_by(rows.c.seq)
    )
    async with sessions() as session:
        found: list[Any] = list((await session.execute(query)).all())
    if not found:
        return None
    entries = tuple(Entry(seq, kind, data) for _, _, seq, kind, data in found if seq is not None)
    return Glance(found[0][1], found[0][0] in ENDED, entries)


class Feed:
    """The newest events of one run, read once for all followers of this process."""

    def __init__(self, run_id: UUID, begins: int) -> None:
        self.run_id = run_id
        self.begins = begins
        """The feed holds every event after this one."""
        self.kept: deque[Entry] = deque()
        self.closed = False
        self.followers = 0
        self.changed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    @property
    def last(self) -> int:
        """The newest event that is known here."""
        return self.kept[-1].seq if self.kept else self.begins

    def add(self, entries: tuple[Entry, ...], *, closed: bool) -> None:
        """Take new events in and tell the followers."""
        self.kept.extend(entries)
        while len(self.kept) > _KEPT:
            self.begins = self.kept.popleft().seq
        self.closed = self.closed or closed
        if entries or closed:
            self.beat()

    def beat(self) -> None:
        """Let all followers look; without news they tell their clients that the line is open."""
        told, self.changed = self.changed, asyncio.Event()
        told.set()

    def after(self, seq: int) -> list[Entry]:
        """The kept events after `seq`, which is not before the feed begins; `seq` counts without gaps."""
        missing = max(0, self.last - seq)
        return list(islice(reversed(self.kept), missing))[::-1]


class Streams:
    """All feeds of this process."""

    def __init__(self, sessions: Sessions, followers: Followers) -> None:
        self._sessions = sessions
        self._wakes = followers
        self._feeds: dict[UUID, Feed] = {}
        self._closing = False

    async def follow(self, run_id: UUID, after: int) -> AsyncIterator[Entry | None]:
        """Every event after `after`, in order, until the run's last; None now and then, while nothing happens."""
        at = after
        while not self._closing and (seen := await self._glance_patiently(run_id, at)) is not None:
            at = min(at, seen.last_seq)
            for entry in seen.entries:
                yield entry
                at = entry.seq
            if seen.is_the_end(at):
                return
            if len(seen.entries) < _BATCH:
                async for item in self._live(run_id, at):
                    yield item
                    at = item.seq if item is not None else at
                continue  # the feed ended, or this follower fell behind it: look at the rows again

    async def _live(self, run_id: UUID, at: int) -> AsyncIterator[Entry | None]:
        feed = self._join(run_id, at)
        try:
            while at >= feed.begins:
                changed = feed.changed
                for entry in feed.after(at):
                    yield entry
                    at = entry.seq
                if feed.closed:
                    return
                if changed is not feed.changed:
                    continue
                await changed.wait()
                if at == feed.last and not feed.closed:
                    yield None
        finally:
            self._leave(feed)

    def _join(self, run_id: UUID, at: int) -> Feed:
        feed = self._feeds.get(run_id)
        if feed is None or feed.closed:
            feed = self._feeds[run_id] = Feed(run_id, at)
            feed.task = asyncio.create_task(self._feed(feed), name=f"feed {run_id}")
        feed.followers += 1
        return feed

    def _leave(self, feed: Feed) -> None:
        feed.followers -= 1
        if feed.followers == 0:
            if self._feeds.get(feed.run_id) is feed:
                del self._feeds[feed.run_id]
            if feed.task is not None:
                feed.task.cancel()

    async def _feed(self, feed: Feed) -> None:
        bell = asyncio.Event()
        listening = asyncio.create_task(self._listen(feed.run_id, bell))
        beating = asyncio.create_task(self._beat(feed))
        try:
            while not feed.closed:
                bell.clear()
                seen = await self._glance_patiently(feed.run_id, feed.last)
                if seen is None:
                    feed.add((), closed=True)
                    return
                last = seen.entries[-1].seq if seen.entries else feed.last
                feed.add(seen.entries, closed=seen.is_the_end(last))
                if len(seen.entries) < _BATCH and not feed.closed:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(bell.wait(), POLL_SECONDS)
        finally:
            feed.add((), closed=True)
            listening.cancel()
            beating.cancel()

    async def _beat(self, feed: Feed) -> None:
        # One clock for all followers of the feed: a timer for each would cost more than the event.
        while not feed.closed:
            await asyncio.sleep(COMMENT_SECONDS)
            feed.beat()

    async def _listen(self, run_id: UUID, bell: asyncio.Event) -> None:
        async for _ in self._wakes.subscribe(run_id):
            bell.set()

    async def _glance_patiently(self, run_id: UUID, after: int) -> Glance | None:
        """Look again until the database answers: a follower outlives its restart."""
        while not self._closing:
            try:
                return await glance(self._sessions, run_id, after)
            except (SQLAlchemyError, OSError, TimeoutError) as error:
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
