"""All events of a tenant, live: in the order (occurred_at, event_id), with nothing missed and nothing repeated.

The log has no number across runs, and a transaction may commit events that are older than some that were seen. So only
events before the *horizon* are sent: no transaction that could still commit an older one is open. The horizon is read
first and the rows in a later snapshot; whoever has committed in between is seen, whoever has not is behind the horizon.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from bisect import bisect_right
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Text, cast, func, literal_column, select, text, tuple_
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db.engine import Sessions
from backend.adapters.db.tables import Event
from backend.api.installation import Followers
from backend.api.streams import COMMENT_SECONDS, POLL_SECONDS
from backend.operations import timeline
from backend.operations.pages import cursor_of

Place = tuple[datetime, UUID]
_KEPT = 1_000
_BATCH = 500
_SOONEST = 0.05
_log = logging.getLogger(__name__)

# A statement evaluates `clock_timestamp()` a moment before its first row gives its transaction an id: until then the
# beginning of the statement stands for it. Statements that have read for ten seconds are no such moment.
_OPEN = text("""
SELECT min(CASE WHEN backend_xid IS NOT NULL THEN xact_start ELSE query_start END)
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
  AND (backend_xid IS NOT NULL OR (state = 'active' AND query_start > clock_timestamp() - interval '10 seconds'))
""")


@dataclass(frozen=True, slots=True)
class TenantEntry:
    """One event as it is sent; `place` is where it stands in the order."""

    place: Place
    type: str
    data: str

    def frame(self) -> bytes:
        """As a server-sent event whose id leads back to it."""
        return f"id: {cursor_of(*self.place)}\nevent: {self.type}\ndata: {self.data}\n\n".encode()


async def horizon(session: AsyncSession) -> tuple[datetime, bool]:
    """Before which instant every event that will ever be is committed; and whether open transactions hold it back."""
    clock: datetime = (await session.execute(text("SELECT clock_timestamp()"))).scalar_one()
    opened: datetime | None = (await session.execute(_OPEN)).scalar_one()
    return (clock, False) if opened is None or opened >= clock else (opened, True)


async def _read(session: AsyncSession, tenant_id: UUID, after: Place | None, before: datetime) -> list[TenantEntry]:
    query = select(*timeline.VIEW.shown, Event.occurred_at.label("at")).where(
        Event.tenant_id == tenant_id, Event.occurred_at < before
    )
    if after is not None:
        query = query.where(tuple_(Event.occurred_at, Event.event_id) > after)
    x = query.order_by(Event.occurred_at, Event.event_id).limit(_BATCH).subquery("x")
    shown = cast(func.to_jsonb(literal_column("x")).op("-")("at"), Text)
    rows: list[Any] = list(
        (await session.execute(select(x.c.at, x.c.event_id, x.c.type, shown).order_by(x.c.at, x.c.event_id))).all()
    )
    return [TenantEntry((at, event_id), kind, data) for at, event_id, kind, data in rows]


class TenantStreams:
    """One feed a tenant in each process: rows are read once for all who have caught up."""

    def __init__(self, sessions: Sessions, followers: Followers) -> None:
        """`sessions` give each statement a snapshot of its own (autocommit)."""
        self._sessions, self._wakes = sessions, followers
        self._feeds: dict[UUID, _Feed] = {}
        self._closing = False

    async def now(self) -> Place:
        """The place of everything that is committed at this moment and can no longer change."""
        async with self._sessions() as session:
            return (await horizon(session))[0], UUID(int=0)

    async def follow(self, tenant_id: UUID, after: Place | None) -> AsyncIterator[TenantEntry | None]:
        """Every event of the tenant after a place (None: from the first), then live ones; None now and then."""
        at = after
        while not self._closing:
            until, entries = await self._patiently(tenant_id, at)
            for entry in entries:
                yield entry
                at = entry.place
            if len(entries) < _BATCH and not self._closing:
                at = max(at, until) if at is not None else until
                async for item in self._live(tenant_id, at):
                    yield item
                    at = item.place if item is not None else at
                await asyncio.sleep(_SOONEST)  # an open transaction may hold the horizon before the feed's beginning

    async def _live(self, tenant_id: UUID, at: Place) -> AsyncIterator[TenantEntry | None]:
        feed = self._join(tenant_id, at)
        try:
            while at >= feed.begins and not feed.closed:
                changed = feed.changed
                for entry in feed.after(at):
                    yield entry
                    at = entry.place
                if changed is not feed.changed:
                    continue
                try:
                    await asyncio.wait_for(changed.wait(), COMMENT_SECONDS)
                except TimeoutError:
                    yield None
        finally:
            self._leave(feed)

    def _join(self, tenant_id: UUID, at: Place) -> _Feed:
        feed = self._feeds.get(tenant_id)
        if feed is None or feed.closed:
            feed = self._feeds[tenant_id] = _Feed(tenant_id, at)
            feed.task = asyncio.create_task(self._feed(feed), name=f"feed of tenant {tenant_id}")
        feed.followers += 1
        return feed

    def _leave(self, feed: _Feed) -> None:
        feed.followers -= 1
        if feed.followers == 0:
            if self._feeds.get(feed.tenant_id) is feed:
                del self._feeds[feed.tenant_id]
            if feed.task is not None:
                feed.task.cancel()

    async def _feed(self, feed: _Feed) -> None:
        bell = asyncio.Event()
        listening = asyncio.create_task(self._listen(bell))
        pause = _SOONEST
        try:
            while not self._closing:
                bell.clear()
                async with self._sessions() as session:
                    before, held_back = await horizon(session)
                    entries = await _read(session, feed.tenant_id, feed.last, before)
                feed.add(entries)
                pause = _SOONEST if entries else min(POLL_SECONDS, pause * 2)
                if len(entries) < _BATCH:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(bell.wait(), pause if held_back else POLL_SECONDS)
                    await asyncio.sleep(_SOONEST)
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            _log.warning("Events cannot be read at the moment: %s", type(error).__name__)
        finally:
            feed.close()
            listening.cancel()

    async def _listen(self, bell: asyncio.Event) -> None:
        async for _ in self._wakes.subscribe(None):
            bell.set()

    async def _patiently(self, tenant_id: UUID, after: Place | None) -> tuple[Place, list[TenantEntry]]:
        """Read until the database answers: a follower outlives its restart."""
        while True:
            try:
                async with self._sessions() as session:
                    before, _ = await horizon(session)
                    return (before, UUID(int=0)), await _read(session, tenant_id, after, before)
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                _log.warning("Events cannot be read at the moment: %s", type(error).__name__)
                await asyncio.sleep(POLL_SECONDS)
                if self._closing:
                    return after or (datetime.min, UUID(int=0)), []

    async def close(self) -> None:
        """End all feeds, and with them the streams of this process."""
        self._closing = True
        tasks = [feed.task for feed in self._feeds.values() if feed.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Feed:
    """The newest events of one tenant; it holds every event after `begins`."""

    def __init__(self, tenant_id: UUID, begins: Place) -> None:
        self.tenant_id, self.begins = tenant_id, begins
        self.kept: list[TenantEntry] = []
        self.closed = False
        self.followers = 0
        self.changed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    @property
    def last(self) -> Place:
        """The newest event that is known here."""
        return self.kept[-1].place if self.kept else self.begins

    def add(self, entries: list[TenantEntry]) -> None:
        """Take new events in and tell the followers."""
        if not entries:
            return
        self.kept.extend(entries)
        if len(self.kept) > 2 * _KEPT:
            self.begins = self.kept[-_KEPT - 1].place
            del self.kept[:-_KEPT]
        self._tell()

    def after(self, place: Place) -> list[TenantEntry]:
        """The kept events after a place that is not before the feed begins."""
        return self.kept[bisect_right(self.kept, place, key=lambda entry: entry.place) :]

    def close(self) -> None:
        """Hold no more events: whoever follows looks at the rows again."""
        self.closed = True
        self._tell()

    def _tell(self) -> None:
        told, self.changed = self.changed, asyncio.Event()
        told.set()
