"""What runs may spend and have spent: budgets beside the run's own limits, and reservations whose worker died."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from uuid import UUID

from sqlalchemy import func, select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db.tables import Budget, ModelCall, Project, ProjectRun
from backend.domain.budget import Limit
from backend.domain.config import RunConfig
from backend.errors import Fault, Invalid
from backend.operations import events

LOST = "The worker died while the call was in flight; the provider may have billed it, so its ceiling is booked."
UNSENT = "The worker died before it had played the recorded reply; nothing was billed."
CANCELLED = "The run was stopped while the call was in flight; the provider may have billed it: its ceiling is booked."

_OPEN_ROLE = text(
    "INSERT INTO budgets (tenant_id, scope, owner_id, name, limit_tokens, limit_usd)"
    " VALUES (:tenant, 'run_role', :run, :role, :tokens, :usd) ON CONFLICT DO NOTHING"
)
_OPEN_MONTH = text(
    "INSERT INTO budgets (tenant_id, scope, owner_id, name, limit_usd, spent_tokens, spent_usd)"
    " SELECT t.id, 'tenant_month', t.id, m.name, t.monthly_budget_usd, coalesce(sum(c.tokens_input + c.tokens_output),"
    " 0), coalesce(sum(c.cost_usd), 0) FROM tenants t CROSS JOIN (SELECT DISTINCT to_char(d, 'YYYY-MM') AS name,"
    " date_trunc('month', d) AS first FROM unnest(ARRAY[clock_timestamp() AT TIME ZONE 'UTC',"
    " (clock_timestamp() + interval '1 day') AT TIME ZONE 'UTC']) d) m LEFT JOIN model_calls c ON c.tenant_id = t.id"
    " AND c.created_at AT TIME ZONE 'UTC' >= m.first AND c.created_at AT TIME ZONE 'UTC' < m.first + interval '1 month'"
    " WHERE t.id = :tenant AND t.monthly_budget_usd IS NOT NULL GROUP BY t.id, m.name"
    " ON CONFLICT DO NOTHING"
)


async def open_budgets(session: AsyncSession, run: ProjectRun, config: RunConfig) -> None:
    """Make the rows of the run's role caps and of its tenant's month; those that are there stay."""
    for role, cap in config.budget.roles.items():
        if cap.tokens is not None or cap.usd is not None:
            values = {"tenant": run.tenant_id, "run": run.id, "role": str(role), "tokens": cap.tokens, "usd": cap.usd}
            await session.execute(_OPEN_ROLE, values)
    await session.execute(_OPEN_MONTH, {"tenant": run.tenant_id})


async def raise_limit(session: AsyncSession, run: ProjectRun, limit: Limit, amount: Decimal) -> None:
    """Let one limit grow; the caller holds the run's row lock. Raises `Invalid` where there is no such limit."""
    owner = {"run_role": run.id, "project": run.project_id, "tenant_month": run.tenant_id}.get(limit.scope)
    limited: ProjectRun | Budget | None = run
    if owner is not None:
        limited = await session.scalar(
            select(Budget)
            .where(Budget.scope == limit.scope, Budget.owner_id == owner, Budget.name == limit.name)
            .with_for_update(key_share=True)
            .execution_options(populate_existing=True)
        )
    current = getattr(limited, f"limit_{limit.unit}", None)
    if current is None:
        right = f"a unit that {limit.whose} has a limit in"
        raise Invalid(f"{limit.whose.capitalize()} has no limit in {limit.unit}.", faults=[Fault("/answer", right)])
    grown = current + amount
    setattr(limited, f"limit_{limit.unit}", grown if limit.unit == "usd" else int(grown))


async def settle_lost(session: AsyncSession, run: ProjectRun) -> Sequence[UUID]:
    """Settle the reservations of earlier leases; the caller holds the run's row lock.

    A provider may have billed a call whose answer never came, so its ceiling is booked. A replayed call never left the
    worker that died: its reservation is given back.
    """
    lost = await session.scalars(
        select(ModelCall).where(
            ModelCall.run_id == run.id, ModelCall.status == "reserved", ModelCall.lease_epoch < run.lease_epoch
        )
    )
    settled = list(lost)
    for call in settled:
        await _settle(session, run, call, billed=not _is_replayed(run, call))
    return [call.id for call in settled]


def _is_replayed(run: ProjectRun, call: ModelCall) -> bool:
    provider = run.config_snapshot["models"]["providers"].get(call.provider, {})
    return bool(provider.get("kind") == "replay")


async def _settle(session: AsyncSession, run: ProjectRun, call: ModelCall, *, billed: bool) -> None:
    held_tokens, held_usd = call.reserved_tokens, call.reserved_usd
    tokens, usd = (held_tokens, held_usd) if billed else (0, Decimal(0))
    call.status, call.error = ("failed", LOST) if billed else ("released", UNSENT)
    call.settled_at = func.clock_timestamp()
    # The quote's parts are not kept apart: the whole ceiling is booked as input.
    call.tokens_input, call.cost_usd = tokens, usd
    run.spent_tokens_input += tokens
    run.spent_usd += usd
    run.reserved_tokens -= held_tokens
    run.reserved_usd -= held_usd
    run.model_calls += int(billed)
    for budget in await _budgets_of(session, run, call):
        budget.spent_tokens += tokens
        budget.spent_usd += usd
        budget.reserved_tokens = max(0, budget.reserved_tokens - held_tokens)
        budget.reserved_usd = max(budget.reserved_usd - held_usd, Decimal(0))
    project = await session.get_one(Project, run.project_id)
    project.spent_usd = Project.spent_usd + usd
    if billed:
        told = {"role": call.role, "model": call.model, "node": call.node, "visit": call.visit, "error": LOST}
        events.record(session, run, "model.failed", told, source="engine")
    await session.flush()


async def _budgets_of(session: AsyncSession, run: ProjectRun, call: ModelCall) -> Sequence[Budget]:
    """The budgets beside the run's own that a call was reserved against, locked."""
    month = call.created_at.strftime("%Y-%m")
    scopes = (
        ("run_role", run.id, call.role),
        ("project", run.project_id, "all"),
        ("tenant_month", run.tenant_id, month),
    )
    found = await session.scalars(
        select(Budget)
        .where(tuple_(Budget.scope, Budget.owner_id, Budget.name).in_(scopes))
        .order_by(Budget.scope)
        .with_for_update(key_share=True)
    )
    return found.all()
