"""Limits of projects and months over HTTP: what is set counts, with what was spent before."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import func, update

from backend.adapters.db.engine import Sessions
from backend.adapters.db.tables import Budget, ModelCall, ProjectRun
from tests.integration.api.conftest import Post


async def _call(sessions: Sessions, run: Any, ordinal: int, **values: Any) -> None:
    asked = {"node": "work", "visit": 1, "ordinal": ordinal, "attempt": 1, "role": "pm", "provider": "p", "model": "m"}
    kept = {"request_hash": "h", "request": {}, "reserved_tokens": 0, "reserved_usd": 0, "lease_epoch": 1}
    async with sessions.begin() as session:
        session.add(ModelCall(run_id=UUID(run["id"]), **asked | kept | values))


@pytest.mark.parametrize("month", [False, True], ids=["project", "month"])
async def test_a_limit_counts_what_was_spent_and_is_held_already(
    client: httpx.AsyncClient, new_run: Post, sessions: Sessions, month: bool
) -> None:
    run = await new_run()
    path = "/api/budget" if month else f"/api/projects/{run['project_id']}/budget"
    assert (await client.get(path)).json()["limits"] == {"tokens": None, "usd": None, "seconds": None}
    await _call(sessions, run, 1, status="failed", tokens_input=70, settled_at=func.now())
    await _call(sessions, run, 2, status="reserved", reserved_tokens=30)
    assert (await client.put(path, json={"tokens": 20})).status_code == 409
    made = (await client.put(path, json={"tokens": 1000, "usd": "2.5"})).json()
    assert made["limits"] == {"tokens": 1000, "usd": "2.500000", "seconds": None}
    assert (made["spent"]["tokens"], made["held"]["tokens"]) == (70, 30)
    assert (await client.put(path, json={"tokens": 20})).status_code == 409
    lower = (await client.put(path, json={"tokens": 500, "seconds": 90})).json()
    assert lower["limits"] == {"tokens": 500, "usd": None, "seconds": 90}
    assert (await client.get(path)).json()["held"]["tokens"] == 30


@pytest.mark.parametrize("month", [False, True], ids=["project", "month"])
async def test_a_limit_in_seconds_counts_what_runs_worked_and_are_granted(
    client: httpx.AsyncClient, new_run: Post, sessions: Sessions, month: bool
) -> None:
    run = await new_run()
    path = "/api/budget" if month else f"/api/projects/{run['project_id']}/budget"
    async with sessions.begin() as session:
        await session.execute(update(ProjectRun).values(spent_seconds=40))
    made = (await client.put(path, json={"seconds": 100})).json()
    assert made["limits"] == {"tokens": None, "usd": None, "seconds": 100}
    assert (made["spent"]["seconds"], made["held"]["seconds"]) == ("40.000000", "0.000000")
    async with sessions.begin() as session:
        await session.execute(update(Budget).values(reserved_seconds=15))
    refused = await client.put(path, json={"seconds": 14})
    assert (refused.status_code, "runs that work" in refused.json()["detail"]) == (409, True)
    assert (await client.put(path, json={"seconds": 20})).json()["spent"]["seconds"] == "40.000000"
    assert (await client.put(path, json={"seconds": 0})).status_code == 422
    assert (await client.put(path, json={})).json()["limits"]["seconds"] is None


@pytest.mark.parametrize("body", [{"usd": 0}, {"usd": "a lot"}, {"tokens": -1}, {"tokens": 1.5}, {"euro": 3}])
async def test_a_limit_that_is_none_is_refused(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    assert (await client.put("/api/budget", json=body)).status_code == 422


async def test_there_is_no_budget_of_a_project_that_is_not_there(client: httpx.AsyncClient) -> None:
    path = "/api/projects/0199a1b2-0000-7000-8000-000000000001/budget"
    assert (await client.get(path)).status_code == 404
    assert (await client.put(path, json={"usd": "1"})).status_code == 404
