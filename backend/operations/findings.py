"""What scanners, tests and reviews found: read it, and let one pass until a date, by name and with a reason."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db.tables import Finding
from backend.domain.finding import FindingSource, FindingStatus, Severity
from backend.domain.ids import DEFAULT_TENANT
from backend.errors import Conflict, Fault, Invalid
from backend.operations import events, pages, runs

VIEW = pages.View(Finding, leave_out=frozenset({"tenant_id"}))
MAX_REASON = 5_000


async def get(session: AsyncSession, finding_id: UUID, *, tenant_id: UUID = DEFAULT_TENANT) -> Finding:
    """The finding. Raises `NotFound`."""
    return await pages.owned(session, Finding, finding_id, tenant_id, "finding")


async def page(
    session: AsyncSession,
    wanted: pages.PageRequest,
    *,
    tenant_id: UUID = DEFAULT_TENANT,
    run_id: UUID | None = None,
    status: FindingStatus | None = None,
    severity: Severity | None = None,
    source: FindingSource | None = None,
) -> pages.Page:
    """A page of the findings that fit, newest first."""
    return await VIEW.page(
        session,
        wanted,
        *pages.fitting(Finding, tenant_id, run_id=run_id, status=status, severity=severity, source=source),
    )


async def waive(
    session: AsyncSession,
    finding_id: UUID,
    *,
    by: str,
    reason: str,
    until: datetime,
    tenant_id: UUID = DEFAULT_TENANT,
) -> Finding:
    """Let a finding pass until a date; waiving again replaces the waiver.

    Raises `Conflict` for one that is fixed, `Invalid` for a date that is past (by the database's clock) or a waiver
    without a name or reason.
    """
    for pointer, text, most in (("/by", by, 200), ("/reason", reason, MAX_REASON)):
        if not text.strip() or len(text) > most:
            right = f"1 to {most:,} characters"
            raise Invalid("A waiver names who lets the finding pass, and why.", faults=[Fault(pointer, right)])
    found = await get(session, finding_id, tenant_id=tenant_id)
    run = await runs.get(session, found.run_id, tenant_id=tenant_id, lock=True)
    finding = await session.get_one(Finding, finding_id, with_for_update=True, populate_existing=True)
    if finding.status not in {FindingStatus.OPEN, FindingStatus.WAIVED}:
        raise Conflict(f"Finding {finding.rule} is {finding.status}; only an open one can be waived.")
    now = await session.scalar(select(func.clock_timestamp()))
    if now is None or until <= now:
        raise Invalid("A waiver ends in the future.", faults=[Fault("/until", "an instant in the future")])
    finding.status = FindingStatus.WAIVED
    finding.waived_by, finding.waived_reason, finding.waived_until = by.strip(), reason.strip(), until
    payload = {"finding": str(finding.id), "rule": finding.rule, "by": by, "until": until.isoformat()}
    events.record(session, run, "finding.waived", payload)
    await session.flush()
    return finding
