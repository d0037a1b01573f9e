"""What a run will have spent when it is done: ranges from progress, spend and tasks, or nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db.tables import ModelCall, ProjectRun, Task
from backend.operations import runs

Make = Callable[..., Awaitable[Any]]
HALFWAY: dict[str, Any] = {
    "status": "RUNNING",
    "progress": 40,
    "model_calls": 4,
    "spent_usd": Decimal(2),
    "spent_tokens_input": 300,
    "spent_tokens_output": 100,
    "spent_seconds": Decimal(60),
    "limit_usd": Decimal(6),
    "limit_tokens": 700,
}


async def add_task(session: AsyncSession, run: ProjectRun, key: str, status: str, usd: str) -> None:
    task = Task(run_id=run.id, key=key, title=key, kind="feature", status=status, assigned_role="developer")
    session.add(task)
    call = ModelCall(
        run_id=run.id, task_key=key, node="dev_work", visit=int(key[1:]), ordinal=1, attempt=1, role="developer",
        provider="p", model="m", request_hash="h", prompt_hash="", request={}, status="done", lease_epoch=1,
        reserved_tokens=100,
        settled_at=datetime.now(UTC),
        reserved_usd=Decimal(usd),
        tokens_input=50, tokens_output=50, cost_usd=Decimal(usd), price_version="1",
    )  # fmt: skip
    session.add(call)
    await session.flush()


async def test_what_is_left_costs_as_much_as_the_same_share_did(session: AsyncSession, make_run: Make) -> None:
    run = await make_run(session, **HALFWAY)
    said = await runs.forecast(session, run.id)
    assert said is not None
    # 60 of 100 per cent are left: one and a half times what was spent, once halved and once with half as much again.
    assert said["usd"] == {
        "spent": "2.000000", "low": "3.500000", "high": "6.500000", "limit": "6.000000", "reaches_limit": "possible"
    }  # fmt: skip
    assert said["tokens"] == {"spent": 400, "low": 700, "high": 1300, "limit": 700, "reaches_limit": "possible"}
    assert said["seconds"] == {"spent": 60, "low": 105, "high": 195, "limit": None, "reaches_limit": "no"}
    assert said["computed"].startswith("At 40 % with 0 tasks done and 0 left:")


async def test_finished_tasks_widen_the_range(session: AsyncSession, make_run: Make) -> None:
    run = await make_run(session, **HALFWAY | {"limit_usd": Decimal("2.5")})
    await add_task(session, run, "T1", "DONE", "0.5")
    await add_task(session, run, "T2", "DONE", "0.1")
    await add_task(session, run, "T3", "IN_PROGRESS", "1")
    await add_task(session, run, "T4", "CREATED", "0")
    said = await runs.forecast(session, run.id)
    assert said is not None
    # Two tasks are left at 0.3 each: 0.6 instead of the 3.0 by progress.
    assert (said["usd"]["low"], said["usd"]["high"]) == ("2.300000", "6.500000")
    assert said["usd"]["reaches_limit"] == "possible"
    assert said["tokens"] == {"spent": 400, "low": 500, "high": 1300, "limit": 700, "reaches_limit": "possible"}
    assert "2 tasks done and 2 left" in said["computed"]
    assert "finished tasks" in said["computed"]


@pytest.mark.parametrize(
    "changes",
    [{"progress": 5}, {"progress": 100}, {"model_calls": 0}, {"status": "FAILED"}, {"status": "COMPLETED"}],
    ids=str,
)
async def test_where_nothing_can_be_said_nothing_is(
    session: AsyncSession, make_run: Make, changes: dict[str, Any]
) -> None:
    run = await make_run(session, **HALFWAY | changes)
    assert await runs.forecast(session, run.id) is None


async def test_the_overview_shows_the_forecast_of_a_run_on_its_way(session: AsyncSession, make_run: Make) -> None:
    run = await make_run(session, **HALFWAY)
    query = text("SELECT forecast -> 'usd' ->> 'low' FROM v_run_overview WHERE run_id = :run")
    assert await session.scalar(query, {"run": run.id}) == "3.500000"
    query = text("UPDATE project_runs SET limit_usd = 3 WHERE id = :run")
    await session.execute(query, {"run": run.id})
    said = await runs.forecast(session, run.id)
    assert said is not None
    assert said["usd"]["reaches_limit"] == "expected"
