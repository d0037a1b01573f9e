"""What runs may spend and have spent: budgets beside the run's own limits, and reservations whose worker died."""

from __future__ import annotations

from decimal import Decimal
from uuid import UUID

from sqlalchemy import String, bindparam, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db.engine import wake_after_commit
from backend.adapters.db.tables import Budget, ProjectRun
from backend.domain.budget import Limit
from backend.domain.config import RunConfig
from backend.errors import Fault, Invalid
from backend.operations import events

LOST = "The worker died while the call was in flight; the provider may have billed it, so its ceiling is booked."
UNSENT = "The worker died before it had played the recorded reply; nothing was billed."
GONE = "The node ended before the call was sent; nothing was billed."
CANCELLED = "The run was stopped while the call was in flight; the provider may have billed it: its ceiling is booked."

_OPEN_ROLE = text(
    "INSERT INTO budgets (tenant_id, scope, owner_id, name, limit_tokens, limit_usd, limit_seconds)"
    " VALUES (:tenant, 'run_role', :run, :role, :tokens, :usd, :seconds) ON CONFLICT DO NOTHING"
)
_OPEN_MONTH = text(
    "INSERT INTO budgets (tenant_id, scope, owner_id, name, limit_tokens, limit_usd, limit_seconds, spent_tokens,"
    " spent_usd) SELECT t.id, 'tenant_month', t.id, m.name, t.monthly_budget_tokens, t.monthly_budget_usd,"
    " t.monthly_budget_seconds,"
    " coalesce(sum(c.tokens_input + c.tokens_output), 0), coalesce(sum(c.cost_usd), 0)"
    " FROM tenants t CROSS JOIN (SELECT DISTINCT to_char(d, 'YYYY-MM') AS name,"
    " date_trunc('month', d) AS first FROM unnest(ARRAY[clock_timestamp() AT TIME ZONE 'UTC',"
    " (clock_timestamp() + interval '1 day') AT TIME ZONE 'UTC']) d) m LEFT JOIN model_calls c ON c.tenant_id = t.id"
    " AND c.created_at AT TIME ZONE 'UTC' >= m.first AND c.created_at AT TIME ZONE 'UTC' < m.first + interval '1 month'"
    " WHERE t.id = :tenant"
    " AND num_nonnulls(t.monthly_budget_tokens, t.monthly_budget_usd, t.monthly_budget_seconds) > 0"
    " GROUP BY t.id, m.name ON CONFLICT DO NOTHING"
)
_SETTLE_LOST = text(
    "WITH lost AS (SELECT c.id, coalesce(r.config_snapshot #>> ARRAY['models', 'providers', c.provider, 'kind'], '')"
    " <> 'replay' AS billed FROM model_calls c JOIN project_runs r ON r.id = c.run_id"
    " WHERE c.run_id = :run AND c.status = 'reserved' AND c.lease_epoch < r.lease_epoch),"
    " settled AS (UPDATE model_calls c SET status = CASE WHEN l.billed THEN 'failed' ELSE 'released' END,"
    " error = CASE WHEN l.billed THEN :lost ELSE :unsent END, settled_at = clock_timestamp(),"
    " tokens_input = CASE WHEN l.billed THEN c.reserved_tokens ELSE 0 END,"
    " cost_usd = CASE WHEN l.billed THEN c.reserved_usd ELSE 0 END,"
    " seconds = CASE WHEN l.billed THEN c.reserved_seconds ELSE 0 END FROM lost l WHERE c.id = l.id"
    " RETURNING c.id, c.role, c.model, c.node, c.visit, c.created_at, l.billed, c.reserved_tokens, c.reserved_usd,"
    " c.tokens_input, c.cost_usd, c.seconds, c.reserved_seconds),"
    " sums AS (SELECT count(*) AS settled, count(*) FILTER (WHERE billed) AS billed,"
    " sum(reserved_tokens) AS held_tokens, sum(reserved_usd) AS held_usd, sum(tokens_input) AS tokens,"
    " sum(cost_usd) AS usd FROM settled),"
    " booked AS (UPDATE project_runs r SET spent_tokens_input = r.spent_tokens_input + s.tokens,"
    " spent_usd = r.spent_usd + s.usd, reserved_tokens = r.reserved_tokens - s.held_tokens,"
    " reserved_usd = r.reserved_usd - s.held_usd, model_calls = r.model_calls + s.billed,"
    " event_seq = r.event_seq + s.billed FROM sums s WHERE r.id = :run AND s.settled > 0"
    " RETURNING r.id, r.tenant_id, r.project_id, r.correlation_id, r.event_seq),"
    " counting AS (SELECT b.id AS budget, b.scope = 'run_role' AS timed, s.* FROM booked r"
    " CROSS JOIN settled s JOIN budgets b"
    " ON (b.scope = 'run_role' AND b.owner_id = r.id AND b.name = s.role)"
    " OR (b.scope = 'project' AND b.owner_id = r.project_id) OR (b.scope = 'tenant_month'"
    " AND b.owner_id = r.tenant_id AND b.name = to_char(s.created_at AT TIME ZONE 'UTC', 'YYYY-MM'))),"
    " beside AS (SELECT b.id FROM budgets b WHERE b.id IN (SELECT c.budget FROM counting c) ORDER BY b.id"
    " FOR NO KEY UPDATE),"
    " also_booked AS (UPDATE budgets b SET spent_tokens = b.spent_tokens + c.tokens, spent_usd = b.spent_usd + c.usd,"
    " reserved_tokens = greatest(0, b.reserved_tokens - c.held_tokens),"
    " reserved_usd = greatest(0, b.reserved_usd - c.held_usd), spent_seconds = b.spent_seconds + c.seconds,"
    " reserved_seconds = greatest(0, b.reserved_seconds - c.held_seconds) FROM (SELECT budget,"
    " coalesce(sum(seconds) FILTER (WHERE timed), 0) AS seconds, coalesce(sum(counting.reserved_seconds)"
    " FILTER (WHERE timed), 0) AS held_seconds, sum(tokens_input) AS tokens, sum(cost_usd) AS usd,"
    " sum(reserved_tokens) AS held_tokens, sum(reserved_usd) AS held_usd FROM counting"
    " JOIN beside ON beside.id = counting.budget GROUP BY budget) c WHERE b.id = c.budget),"
    " project_booked AS (UPDATE projects p SET spent_usd = p.spent_usd + s.usd FROM booked r, sums s"
    " WHERE p.id = r.project_id AND s.usd <> 0),"
    " logged AS (INSERT INTO events (tenant_id, project_id, run_id, seq, type, source, instance, correlation_id,"
    " payload) SELECT r.tenant_id, r.project_id, r.id, r.event_seq - s.total + s.place, 'model.failed', 'engine',"
    " :instance, r.correlation_id, jsonb_build_object('role', s.role, 'model', s.model, 'node', s.node,"
    " 'visit', s.visit, 'error', :lost) FROM booked r, (SELECT *, row_number() OVER (ORDER BY created_at, id)"
    " AS place, count(*) OVER () AS total FROM settled WHERE billed) s)"
    " SELECT settled FROM sums"
).bindparams(*(bindparam(name, type_=String) for name in ("lost", "unsent", "instance")))


async def open_budgets(session: AsyncSession, tenant_id: UUID, run_id: UUID, config: RunConfig) -> None:
    """Make the rows of a run's role caps and of its tenant's month; those that are there stay."""
    for role, cap in config.budget.roles.items():
        caps = {"tokens": cap.tokens, "usd": cap.usd, "seconds": cap.seconds}
        if any(most is not None for most in caps.values()):
            await session.execute(_OPEN_ROLE, {"tenant": tenant_id, "run": run_id, "role": str(role), **caps})
    await session.execute(_OPEN_MONTH, {"tenant": tenant_id})


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


async def settle_lost(session: AsyncSession, run: ProjectRun) -> int:
    """Settle the reservations of earlier leases in one statement, and return how many there were.

    A provider may have billed a call whose answer never came, so its ceiling is booked, all of it as input, since the
    quote's parts are not kept apart. A replayed call never left the worker that died: its reservation is given back.
    The caller holds the run's row lock.
    """
    await session.flush()
    values = {"run": run.id, "lost": LOST, "unsent": UNSENT, "instance": events.instance()}
    settled: int = (await session.execute(_SETTLE_LOST, values)).scalar_one()
    if settled:
        await session.refresh(run)
        wake_after_commit(session, run.id)
    return settled
