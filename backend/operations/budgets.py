"""Limits that outlive a run: of a project in all, and of the tenant's calendar month (UTC)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from backend.domain.ids import DEFAULT_TENANT
from backend.errors import Conflict
from backend.operations import projects

_MONTH = text("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM')")
_KNOWN = text("SELECT 1 FROM budgets WHERE scope = :scope AND owner_id = :owner AND name = :name")
_STILL = text("LOCK TABLE budgets IN EXCLUSIVE MODE")
_OPEN = text(
    "INSERT INTO budgets (tenant_id, scope, owner_id, name, spent_tokens, spent_usd, reserved_tokens, reserved_usd)"
    " SELECT :tenant, :scope, :owner, :name, coalesce(sum(tokens_input + tokens_output), 0),"
    " coalesce(sum(cost_usd), 0), coalesce(sum(reserved_tokens) FILTER (WHERE status = 'reserved'), 0),"
    " coalesce(sum(reserved_usd) FILTER (WHERE status = 'reserved'), 0) FROM model_calls"
    " WHERE tenant_id = :tenant AND CASE WHEN :scope = 'project'"
    " THEN run_id IN (SELECT id FROM project_runs WHERE project_id = :owner)"
    " ELSE to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM') = :name END ON CONFLICT DO NOTHING"
)
_BEGIN = text(
    "UPDATE budgets b SET spent_seconds = greatest(b.spent_seconds, (SELECT coalesce(sum(r.spent_seconds), 0)"
    " FROM project_runs r WHERE r.tenant_id = :tenant AND CASE WHEN :scope = 'project' THEN r.project_id = :owner"
    " ELSE coalesce(r.ended_at, clock_timestamp()) >= date_trunc('month', clock_timestamp(), 'UTC') END))"
    " WHERE scope = :scope AND owner_id = :owner AND name = :name AND limit_seconds IS NULL"
)
"""Runs do not say in which month they worked: one that worked on in this one counts with all of its time."""
_HELD = text(
    "SELECT coalesce(reserved_tokens > :tokens, false) OR coalesce(reserved_usd > :usd, false)"
    " OR coalesce(reserved_seconds > :seconds, false) FROM budgets"
    " WHERE scope = :scope AND owner_id = :owner AND name = :name FOR NO KEY UPDATE"
)
_SET = text(
    "UPDATE budgets SET limit_tokens = :tokens, limit_usd = :usd, limit_seconds = :seconds"
    " WHERE scope = :scope AND owner_id = :owner AND name >= :name"
)
"""Of a month: also what is opened already of the next one."""
_STANDING = text(
    "UPDATE tenants SET monthly_budget_tokens = :tokens, monthly_budget_usd = :usd, monthly_budget_seconds = :seconds"
    " WHERE id = :tenant"
)
_SHOWN = text(
    "SELECT name, limit_tokens, limit_usd, limit_seconds, spent_tokens, spent_usd, spent_seconds, reserved_tokens,"
    " reserved_usd, reserved_seconds FROM budgets WHERE scope = :scope AND owner_id = :owner AND name = :name"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be spent in all; None is no limit of that kind."""

    tokens: int | None = None
    usd: Decimal | None = None
    seconds: int | None = None
    """Of work: the time that runs are under a lease."""


async def of_project(session: AsyncSession, project_id: UUID, *, tenant_id: UUID = DEFAULT_TENANT) -> dict[str, Any]:
    """The project's limits with what is spent and held; raises `NotFound`."""
    await projects.get(session, project_id, tenant_id=tenant_id)
    return await _shown(session, "project", project_id, "all")


async def of_month(session: AsyncSession, *, tenant_id: UUID = DEFAULT_TENANT) -> dict[str, Any]:
    """The limits of this month with what is spent and held."""
    return await _shown(session, "tenant_month", tenant_id, str(await session.scalar(_MONTH)))


async def limit_project(
    session: AsyncSession, project_id: UUID, limits: Limits, *, tenant_id: UUID = DEFAULT_TENANT
) -> dict[str, Any]:
    """Set what all runs of a project may spend together, what they have spent included.

    Counts from the next call on, of a run on its way too. Raises `NotFound`, and `Conflict` when more than the new
    limit is held by calls in flight, or granted to a run that works.
    """
    await projects.get(session, project_id, tenant_id=tenant_id)
    await _limit(session, {"tenant": tenant_id, "scope": "project", "owner": project_id, "name": "all"}, limits)
    return await _shown(session, "project", project_id, "all")


async def limit_month(session: AsyncSession, limits: Limits, *, tenant_id: UUID = DEFAULT_TENANT) -> dict[str, Any]:
    """Set what all runs may spend in this calendar month (UTC), and in each that follows.

    Raises `Conflict` when more than the new limit is held by calls in flight, or granted to runs that work.
    """
    month = str(await session.scalar(_MONTH))
    await _limit(session, {"tenant": tenant_id, "scope": "tenant_month", "owner": tenant_id, "name": month}, limits)
    await session.execute(_STANDING, {"tenant": tenant_id, **asdict(limits)})
    return await _shown(session, "tenant_month", tenant_id, month)


async def _limit(session: AsyncSession, which: dict[str, Any], limits: Limits) -> None:
    if await session.scalar(_KNOWN, which) is None:
        # Whoever reserves or settles reads this table first: those that did are over now, so that the sum misses none,
        # and those that come wait before they look, and find the row. Locks on runs would miss one that just begins.
        await session.execute(_STILL)
        await session.execute(_OPEN, which)
    if limits.seconds is not None:
        await session.execute(_BEGIN, which)
    wanted = {**which, **asdict(limits)}
    if await session.scalar(_HELD, wanted):
        raise Conflict(
            "Calls in flight, or runs that work, hold more than this limit; wait for their end, or stop the run first."
        )
    await session.execute(_SET, wanted)


async def _shown(session: AsyncSession, scope: str, owner: UUID, name: str) -> dict[str, Any]:
    row = (await session.execute(_SHOWN, {"scope": scope, "owner": owner, "name": name})).mappings().one_or_none()
    if row is None:
        never: dict[str, Any] = {"tokens": None, "usd": None, "seconds": None}
        return {"scope": scope, "name": None, "limits": never, "spent": None, "held": None}
    return {
        "scope": scope,
        "name": row["name"],
        "limits": {
            "tokens": row["limit_tokens"],
            "usd": _exact(row["limit_usd"]),
            "seconds": row["limit_seconds"],
        },
        **{
            said: {
                "tokens": row[f"{column}_tokens"],
                "usd": _exact(row[f"{column}_usd"]),
                "seconds": _exact(row[f"{column}_seconds"]),
            }
            for said, column in (("spent", "spent"), ("held", "reserved"))
        },
    }


def _exact(amount: Decimal | None) -> str | None:
    return None if amount is None else f"{amount:.6f}"
