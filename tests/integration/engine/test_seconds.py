"""Limits in seconds of a role, a project and a month: held before they are used, booked once, never passed."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest

from backend.domain.model import CallFailed, Position
from backend.operations import budgets
from tests.integration.engine.conftest import Company, reply

BOOKED = "SELECT scope, spent_seconds, reserved_seconds, limit_seconds FROM budgets ORDER BY scope"


async def limit(company: Company, run_id: UUID, scope: str, seconds: int) -> None:
    project_id = (await company.row(run_id))["project_id"]
    if scope == "project":
        await company.operate(budgets.limit_project, project_id, budgets.Limits(seconds=seconds))
    else:
        await company.operate(budgets.limit_month, budgets.Limits(seconds=seconds))


async def books_are_right(company: Company) -> None:
    assert await company.pool.fetch("SELECT * FROM v_ledger_check") == []
    held = "SELECT count(*) FROM project_runs WHERE granted_until IS NOT NULL AND lease_owner IS NULL"
    assert await company.pool.fetchval(held) == 0
    passed = "SELECT * FROM budgets WHERE spent_seconds + reserved_seconds > limit_seconds"
    assert await company.pool.fetch(passed) == []


SHARED = pytest.mark.parametrize("scope", ["project", "tenant_month"])


@SHARED
async def test_what_a_run_works_is_booked_where_it_is_limited(company: Company, scope: str) -> None:
    run_id = await company.run()
    await limit(company, run_id, scope, 1_000)
    await company.executor.execute(run_id)
    row = await company.row(run_id)
    assert (row["status"], row["granted_until"]) == ("COMPLETED", None)
    ((_, spent, held, _),) = await company.pool.fetch(BOOKED)
    assert held == 0
    assert 0 < spent <= row["spent_seconds"]
    await books_are_right(company)


@SHARED
async def test_a_run_that_uses_the_last_second_is_stopped_with_its_call(company: Company, scope: str) -> None:
    run_id = await company.run()
    await limit(company, run_id, scope, 1)
    company.transport.gate.clear()
    await company.executor.execute(run_id)
    row = await company.row(run_id)
    assert (row["status"], row["stop_reason"], row["granted_until"]) == ("STOPPED_BUDGET", "budget", None)
    told = await company.pool.fetchval(
        "SELECT payload FROM events WHERE run_id = $1 AND type = 'budget.exceeded'", run_id
    )
    assert f'"scope": "{scope}"' in told
    assert '"unit": "seconds"' in told
    assert [tuple(one)[1:] for one in await company.pool.fetch(BOOKED)] == [(1, 0, 1)]
    assert (row["reserved_tokens"], row["spent_tokens_input"] + row["spent_tokens_output"]) == (0, 300)
    await books_are_right(company)
