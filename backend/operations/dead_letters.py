"""What could not be executed: read it, and do it again."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db.tables import DeadLetter
from backend.domain.ids import DEFAULT_TENANT
from backend.errors import Conflict
from backend.operations import pages, runs

VIEW = pages.View(DeadLetter, leave_out=frozenset({"tenant_id"}))


async def get(session: AsyncSession, letter_id: UUID, *, tenant_id: UUID = DEFAULT_TENANT) -> DeadLetter:
    """The dead letter. Raises `NotFound`."""
    return await pages.owned(session, DeadLetter, letter_id, tenant_id, "dead letter")


async def page(
    session: AsyncSession,
    wanted: pages.PageRequest,
    *,
    tenant_id: UUID = DEFAULT_TENANT,
    run_id: UUID | None = None,
    replayed: bool | None = None,
) -> pages.Page:
    """A page of the dead letters that fit, newest first; `replayed` leaves those that were, or were not, done again."""
    where = pages.fitting(DeadLetter, tenant_id, run_id=run_id)
    if replayed is not None:
        was = DeadLetter.replayed_at.is_not(None)
        where.append(was if replayed else ~was)
    return await VIEW.page(session, wanted, *where)


async def replay(session: AsyncSession, letter_id: UUID, *, by: str, tenant_id: UUID = DEFAULT_TENANT) -> DeadLetter:
    """Let the run go on from its last checkpoint, with its claims counted anew; a second time changes nothing.

    Raises `Conflict` for a letter that is about no run, or while another run of the project is on its way.
    """
    letter = await get(session, letter_id, tenant_id=tenant_id)
    if letter.run_id is None:
        raise Conflict(f"The dead letter {letter.id} is about a {letter.kind}, not a run; it cannot be replayed here.")
    # The run's row first, as everywhere: whoever asks at the same time sees what the first has done.
    await runs.get(session, letter.run_id, tenant_id=tenant_id, lock=True)
    fresh = select(DeadLetter).where(DeadLetter.id == letter_id).with_for_update()
    letter = (await session.scalars(fresh.execution_options(populate_existing=True))).one()
    if letter.replayed_at is None:
        assert letter.run_id is not None
        await runs.retry(session, letter.run_id, by=by, tenant_id=tenant_id, payload={"dead_letter": str(letter_id)})
        await session.refresh(letter)
    return letter
