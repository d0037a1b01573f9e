"""What runs may spend and have spent: budgets beside the run's own limits, and reservations whose worker died."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db.tables import Budget, ModelCall, Project, ProjectRun
from backend.domain.config import RunConfig
from backend.operations import events

LOST = "The worker died while the call was in flight; the provider may have billed it, so its ceiling is booked."
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
    " ON CONFLICT (scope, owner_id, name) DO UPDATE SET limit_usd = EXCLUDED.limit_usd"
    " WHERE budgets.limit_usd IS DISTINCT FROM EXCLUDED.limit_usd"
)


async def open_budgets(session: AsyncSession, run: ProjectRun, config: RunConfig) -> None:
    """Make the rows of the run's role caps and of its tenant's month; those that are there stay."""
    for role, cap in config.budget.roles.items():
        if cap.tokens is not None or cap.usd is not None:
            values = {"tenant": run.tenant_id, "run": run.id, "role": str(role), "tokens": cap.tokens, "usd": cap.usd}
            await session.execute(_OPEN_ROLE, values)
    await session.execute(_OPEN_MONTH, {"tenant": run.tenant_id})


async def settle_lost(session: AsyncSession, run: ProjectRun) -> Sequence[UUID]:
    """Book the reservations of earlier leases at their ceiling; the caller holds the run's row lock."""
    lost = await session.scalars(
        select(ModelCall).where(
            ModelCall.run_id == run.id, ModelCall.status == "reserved", ModelCall.lease_epoch < run.lease_epoch
        )
    )
    settled = list(lost)
    for call in settled:
        await _book_ceiling(session, run, call)
    return [call.id for call in settled]


async def _book_ceiling(session: AsyncSession, run: ProjectRun, call: ModelCall) -> None:
    call.status, call.error, call.settled_at = "failed", LOST, func.clock_timestamp()
    # The quote's parts are not kept apart: the whole ceiling is booked as input.
    call.tokens_input, call.cost_usd = call.reserved_tokens, call.reserved_usd
    run.spent_tokens_input += call.reserved_tokens
    run.spent_usd += call.reserved_usd
    run.reserved_tokens -= call.reserved_tokens
    run.reserved_usd -= call.reserved_usd
    run.model_calls += 1
    month = call.created_at.strftime("%Y-%m")
    for scope, owner, name in (
        ("run_role", run.id, call.role),
        ("project", run.project_id, "all"),
        ("tenant_month", run.tenant_id, month),
    ):
        budget = await session.scalar(
            select(Budget)
            .where(Budget.scope == scope, Budget.owner_id == owner, Budget.name == name)
            .with_for_update(key_share=True)
        )
        if budget is not None:
            budget.spent_tokens += call.reserved_tokens
            budget.spent_usd += call.reserved_usd
            budget.reserved_tokens = max(0, budget.reserved_tokens - call.reserved_tokens)
            budget.reserved_usd = max(budget.reserved_usd - call.reserved_usd, type(budget.reserved_usd)(0))
    project = await session.get_one(Project, run.project_id)
    project.spent_usd = Project.spent_usd + call.reserved_usd
    events.record(
        session,
        run,
        "model.failed",
        {"role": call.role, "model": call.model, "node": call.node, "visit": call.visit, "error": LOST},
        source="engine",
    )
    await session.flush()
