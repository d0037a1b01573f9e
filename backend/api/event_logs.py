"""How events are read in order: those of one run by their `seq`, those of a tenant by (occurred_at, event_id).

A run's log counts without gaps and has an end. A tenant's has no number across runs, and a transaction may commit
events that are older than some that were seen. So only events before the *horizon* are read: no transaction that could
still commit an older one is open. The horizon is read first and the rows in a later snapshot; whoever has committed in
between is seen, whoever has not is behind the horizon.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar
from uuid import UUID

from sqlalchemy import Select, Text, Uuid, bindparam, cast, func, literal_column, select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db.engine import Sessions
from backend.adapters.db.tables import Event, ProjectRun
from backend.domain.ids import DEFAULT_TENANT
from backend.domain.run import ENDED
from backend.operations import timeline
from backend.operations.pages import cursor_of

P = TypeVar("P")
Place = tuple[datetime, UUID]
BATCH = 500

# A statement evaluates `clock_timestamp()` a moment before its first row gives its transaction an id: until then the
# beginning of the statement stands for it. Statements that have read for ten seconds are no such moment.
_OPEN = text("""
SELECT min(CASE WHEN backend_xid IS NOT NULL THEN xact_start ELSE query_start END)
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
  AND (backend_xid IS NOT NULL OR (state = 'active' AND query_start > clock_timestamp() - interval '10 seconds'))
""")


@dataclass(frozen=True, slots=True)
class Entry(Generic[P]):
    """One event as it is sent; `place` is where it stands in the order, `id` what leads a client back to it."""

    place: P
    id: str
    type: str
    data: str
    frame: bytes = field(init=False, repr=False)
    """As a server-sent event, made once for all followers; JSON made by Postgres holds no line breaks."""

    def __post_init__(self) -> None:
        """Make the frame."""
        object.__setattr__(self, "frame", f"id: {self.id}\nevent: {self.type}\ndata: {self.data}\n\n".encode())


@dataclass(frozen=True, slots=True)
class Look(Generic[P]):
    """The next events, at most `BATCH`."""

    entries: tuple[Entry[P], ...]
    upto: P
    """Where the reader stands when it has these and they are all: whatever comes later comes after this place."""
    ended: bool = False
    """Whether nothing follows, now or ever (unless a run is retried)."""
    held_back: bool = False
    """Whether there may be events that cannot be read before an open transaction ends."""

    @property
    def whole(self) -> bool:
        """Whether these were all that there are now."""
        return len(self.entries) < BATCH


class Log(Protocol[P]):
    """Events in one order."""

    @property
    def name(self) -> tuple[str, UUID]:
        """What tells logs apart."""
        ...

    @property
    def wakes(self) -> UUID | None:
        """The run whose wake-ups tell of new events, None for all runs."""
        ...

    @property
    def rest(self) -> float:
        """Seconds between one look and the next, however often it is woken."""
        ...

    async def look(self, after: P | None) -> Look[P] | None:
        """The events after a place (None: from the first); None when there is no such log."""
        ...


def _look() -> Select[Any]:
    """A run's status and last number, with its next events: made once, since making it took as long as asking it."""
    run_id, tenant_id = bindparam("run", type_=Uuid()), bindparam("tenant", type_=Uuid())
    shown = select(*timeline.VIEW.shown).where(Event.run_id == run_id, Event.seq > bindparam("after"))
    rows = shown.order_by(Event.seq).limit(BATCH).subquery("x")
    where = (ProjectRun.id == run_id, ProjectRun.tenant_id == tenant_id)
    run = select(ProjectRun.status, ProjectRun.event_seq).where(*where).subquery("run")
    row = cast(func.row_to_json(literal_column("x")), Text)
    return (
        select(run.c.status, run.c.event_seq, rows.c.seq, rows.c.type, row)
        .select_from(run.outerjoin(rows, literal_column("true")))
        .order_by(rows.c.seq)
    )


_LOOK = _look()


@dataclass(frozen=True)
class RunLog:
    """The events of one run."""

    sessions: Sessions
    run_id: UUID
    tenant_id: UUID = DEFAULT_TENANT
    rest: float = 0.0

    @property
    def name(self) -> tuple[str, UUID]:
        """What tells logs apart."""
        return "run", self.run_id

    @property
    def wakes(self) -> UUID | None:
        """The run itself."""
        return self.run_id

    async def look(self, after: int | None) -> Look[int] | None:
        """One statement: the run's place and its next events; None when the tenant has no such run."""
        at = after or 0
        asked = {"run": self.run_id, "tenant": self.tenant_id, "after": at}
        async with self.sessions() as session:
            found: list[Any] = list((await session.execute(_LOOK, asked)).all())
        if not found:
            return None
        entries = tuple(Entry(seq, str(seq), kind, data) for _, _, seq, kind, data in found if seq is not None)
        status, last = found[0][:2]
        return Look(entries, last, status in ENDED and (entries[-1].place if entries else at) >= last)


@dataclass(frozen=True)
class TenantLog:
    """The events of all that a tenant owns; `sessions` give each statement a snapshot of its own (autocommit)."""

    sessions: Sessions
    tenant_id: UUID
    rest: float = 0.05

    @property
    def name(self) -> tuple[str, UUID]:
        """What tells logs apart."""
        return "tenant", self.tenant_id

    @property
    def wakes(self) -> UUID | None:
        """Those of all runs."""
        return None

    async def now(self) -> Place:
        """The place of everything that is committed at this moment and can no longer change."""
        async with self.sessions() as session:
            return (await _horizon(session))[0], UUID(int=0)

    async def look(self, after: Place | None) -> Look[Place]:
        """The horizon and the events before it."""
        async with self.sessions() as session:
            before, held_back = await _horizon(session)
            entries = await _read(session, self.tenant_id, after, before)
        upto = (before, UUID(int=0))
        return Look(entries, upto if after is None else max(after, upto), held_back=held_back)


async def _horizon(session: AsyncSession) -> tuple[datetime, bool]:
    """Before which instant every event that will ever be is committed; and whether open transactions hold it back."""
    clock: datetime = (await session.execute(text("SELECT clock_timestamp()"))).scalar_one()
    opened: datetime | None = (await session.execute(_OPEN)).scalar_one()
    return (clock, False) if opened is None or opened >= clock else (opened, True)


async def _read(
    session: AsyncSession, tenant_id: UUID, after: Place | None, before: datetime
) -> tuple[Entry[Place], ...]:
    query = select(*timeline.VIEW.shown, Event.occurred_at.label("at")).where(
        Event.tenant_id == tenant_id, Event.occurred_at < before
    )
    if after is not None:
        query = query.where(tuple_(Event.occurred_at, Event.event_id) > after)
    x = query.order_by(Event.occurred_at, Event.event_id).limit(BATCH).subquery("x")
    shown = cast(func.to_jsonb(literal_column("x")).op("-")("at"), Text)
    rows: list[Any] = list(
        (await session.execute(select(x.c.at, x.c.event_id, x.c.type, shown).order_by(x.c.at, x.c.event_id))).all()
    )
    return tuple(Entry((at, event_id), cursor_of(at, event_id), kind, data) for at, event_id, kind, data in rows)
