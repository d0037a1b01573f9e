"""`v_ledger_check` names every budget whose books are not the sum of its calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db.tables import Budget, ModelCall

Make = Callable[..., Awaitable[Any]]
LEDGER = text("SELECT total_of, unit, booked, summed FROM v_ledger_check WHERE run_id IS NULL ORDER BY total_of, unit")


async def test_limits_of_a_project_and_a_month_are_compared_with_their_calls(
    session: AsyncSession, make_run: Make
) -> None:
    run = await make_run(session, spent_tokens_input=100, spent_usd=Decimal(1), model_calls=1)
    session.add(
        ModelCall(
            run_id=run.id, node="n", visit=1, ordinal=1, attempt=1, role="pm", provider="p", model="m",
            request_hash="h", prompt_hash="", request={}, status="done", lease_epoch=1, tokens_input=100,
            tokens_output=0, cost_usd=Decimal(1), price_version="1", reserved_tokens=100, reserved_usd=Decimal(1),
            settled_at=datetime.now(UTC),
        )
    )  # fmt: skip
    month = str(await session.scalar(text("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM')")))
    owners = {"project": (run.project_id, "all"), "tenant_month": (run.tenant_id, month)}
    budgets = {
        scope: Budget(scope=scope, owner_id=owner, name=name, spent_tokens=100, spent_usd=Decimal(1))
        for scope, (owner, name) in owners.items()
    }
    session.add_all(budgets.values())
    await session.flush()
    assert (await session.execute(LEDGER)).all() == []
    for budget in budgets.values():
        budget.spent_tokens = 99
    await session.flush()
    named = [f"month {month}", f"project {run.project_id}"]
    assert [tuple(row) for row in await session.execute(LEDGER)] == [(who, "tokens", 99, 100) for who in named]


@pytest.mark.parametrize(("scope", "offends"), [("project", True), ("tenant_month", False)])
async def test_only_what_a_month_has_cost_may_outlive_its_calls(
    session: AsyncSession, make_run: Make, scope: str, offends: bool
) -> None:
    run = await make_run(session)
    month = str(await session.scalar(text("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM')")))
    owner, name = (run.project_id, "all") if scope == "project" else (run.tenant_id, month)
    session.add(Budget(scope=scope, owner_id=owner, name=name, spent_tokens=5))
    await session.flush()
    assert bool((await session.execute(LEDGER)).all()) == offends
    held = text("UPDATE budgets SET reserved_tokens = 7 WHERE owner_id = :owner")
    await session.execute(held, {"owner": owner})
    assert "held tokens" in [row.unit for row in await session.execute(LEDGER)]
