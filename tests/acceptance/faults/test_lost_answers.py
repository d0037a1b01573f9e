"""A request was obeyed and the api could not see it: it says 503, and the same request again changes nothing more."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI

from backend.adapters.db.engine import Sessions, connect, sessions_of
from backend.adapters.db.tables import ProjectTemplate
from backend.api.app import create_app
from backend.api.installation import Installation
from backend.engine.health import Check
from backend.engine.leases import Heartbeat
from tests.acceptance.faults import numbers
from tests.acceptance.faults.conftest import Crew
from tests.acceptance.faults.proxy import Proxy
from tests.integration.api.conftest import Quiet
from tests.integration.engine.conftest import Company


@dataclass(frozen=True)
class Order:
    """How a route is called, on a run (or a project) of its own that `before` has prepared."""

    body: dict[str, Any] | None = None
    before: str = ""
    mark: bytes = b""
    """What stands in the transaction, where there is no key."""
    again: int | None = None
    """The answer to the second try, where it is not the answer to the first: the version or the thing is gone."""
    shared: bool = False
    """Whether it changes what all runs share, so that only the first such request makes a row."""


_ENDED = "UPDATE project_runs SET status = 'STOPPED_USER', ended_at = now() WHERE id = $1"
_IDLE = "UPDATE projects SET active_run_id = NULL WHERE active_run_id = $1"
_WAITER = {"by": "ada", "reason": "It is a test key.", "until": "2099-01-01T00:00:00Z"}
ORDERS = {
    "post /api/templates": Order({"slug": "new-{unique}", "title": "Careful"}),
    "post /api/templates/{slug}/{version}/archive": Order(),
    "post /api/projects": Order({"name": "Greeter", "brief": "A library that greets."}),
    "patch /api/projects/{project_id}": Order({"name": "Other"}, mark=b"UPDATE projects SET", again=412),
    "post /api/projects/{project_id}/archive": Order(before="ended"),
    "delete /api/projects/{project_id}": Order(before="ended", mark=b"DELETE FROM projects", again=404),
    "post /api/projects/{project_id}/runs": Order({"config": {}}, before="ended"),
    "put /api/projects/{project_id}/budget": Order({"tokens": 5_000}, mark=b"INTO budgets"),
    "put /api/budget": Order({"tokens": 900_000_000}, mark=b"UPDATE tenants", shared=True),
    "post /api/runs/{run_id}/pause": Order(),
    "post /api/runs/{run_id}/resume": Order(before="asked to pause"),
    "post /api/runs/{run_id}/stop": Order(),
    "post /api/runs/{run_id}/retry": Order(before="failed"),
    "post /api/runs/{run_id}/fork": Order(before="failed"),
    "post /api/tasks": Order({"run_id": "{run_id}", "title": "Greet in French"}),
    "patch /api/tasks/{task_id}": Order({"title": "Other"}, mark=b"UPDATE tasks SET", again=412),
    "post /api/comments": Order({"run_id": "{run_id}", "body": "Well done."}),
    "post /api/questions/{question_id}/answer": Order({"answer": "blue"}, before="waiting"),
    "post /api/findings/{finding_id}/waive": Order(_WAITER),
    "post /api/dead-letters/{letter_id}/replay": Order(before="failed"),
}


@dataclass
class Desk:
    """The api over a proxy and beside it, and the rows that both write."""

    app: FastAPI
    client: httpx.AsyncClient
    lossy: httpx.AsyncClient
    proxy: Proxy
    company: Company

    async def rows(self) -> dict[str, int]:
        """How many rows each table has."""
        tables = await self.company.pool.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        return {name: await self.company.pool.fetchval(f'SELECT count(*) FROM "{name}"') for (name,) in tables}

    async def prepare(self, before: str) -> dict[str, str]:
        """A run as it must be, with a thing of every kind; returns what the placeholders of a path stand for."""
        pool, unique = self.company.pool, f"x{uuid4().hex[:8]}"
        made = {"unique": unique, "slug": f"old-{unique}", "version": "1"}
        await self.client.post("/api/templates", json={"slug": made["slug"], "title": "Old"})
        run_id = await self.company.run("An unusable reply." if before == "failed" else "go")
        if before == "failed":
            await self.company.executor.execute(run_id)
        elif before == "ended":
            await pool.execute(_ENDED, run_id)
            await pool.execute(_IDLE, run_id)
        elif before == "asked to pause":
            await pool.execute("UPDATE project_runs SET requested = 'pause' WHERE id = $1", run_id)
        elif before == "waiting":
            await pool.execute("UPDATE project_runs SET status = 'RUNNING' WHERE id = $1", run_id)
            await pool.execute("UPDATE project_runs SET status = 'WAITING' WHERE id = $1", run_id)
        made |= {"run_id": str(run_id)}
        made["project_id"] = str(await pool.fetchval("SELECT project_id FROM project_runs WHERE id = $1", run_id))
        for name, statement in _THINGS.items():
            made[name] = str(await pool.fetchval(statement, run_id))
        return made


_THINGS = {
    "task_id": "INSERT INTO tasks (id, tenant_id, run_id, key, title, kind, status, assigned_role)"
    " SELECT gen_random_uuid(), tenant_id, id, 'H-7', 'T', 'feature', 'READY', 'developer' FROM project_runs"
    " WHERE id = $1 RETURNING id",
    "question_id": "INSERT INTO questions (id, tenant_id, run_id, key, kind, asked_by, text, options, on_expiry)"
    " SELECT gen_random_uuid(), tenant_id, id, 'k', 'clarification', 'pm', 'Which?', '[]', 'stop' FROM project_runs"
    " WHERE id = $1 RETURNING id",
    "finding_id": "INSERT INTO findings (id, tenant_id, run_id, source, scanner, rule, severity, message, fingerprint,"
    " status) SELECT gen_random_uuid(), tenant_id, id, 'security', 's', 'r', 'HIGH', 'm', 'f', 'open' FROM project_runs"
    " WHERE id = $1 RETURNING id",
    "letter_id": "INSERT INTO dead_letters (tenant_id, run_id, kind, node, lease_epoch, error, payload)"
    " SELECT tenant_id, id, 'run', 'plan', 1, 'e', '{}' FROM project_runs WHERE id = $1 RETURNING id",
}


async def _well() -> Sequence[Check]:
    return [Check("database", "ok", "It answers.")]


async def _workers() -> dict[str, str]:
    return {}


def _app(home: Path, sessions: Sessions) -> FastAPI:
    bell = Quiet()
    return create_app(
        Installation(
            home=home,
            sessions=sessions,
            bell=bell,
            followers=bell,
            graph_version=lambda name: "1",
            graph_shape=lambda name, version: {"nodes": ["work"], "edges": []},
            faults=lambda config, brief: [],
            health=_well,
            readiness=_well,
            workers=_workers,
        )
    )


def _client(app: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://company")


@pytest.fixture
async def desk(tmp_path: Path, database_url: str, sessions: Sessions, pool: Any, make_run: Any) -> AsyncIterator[Desk]:
    async with sessions.begin() as session:
        described = {"title": "Standard", "graph": "software_company", "content_hash": "0" * 64}
        session.add(ProjectTemplate(slug="standard", version=1, config_patch={}, **described))
    heartbeat = Heartbeat(database_url, every=60, lease_seconds=60)
    async with Proxy(database_url) as proxy:
        engine = connect(proxy.url)
        lossy = _app(tmp_path / "home", sessions_of(engine))
        app = _app(tmp_path / "home", sessions)
        async with _client(app) as client, _client(lossy) as over_proxy:
            yield Desk(app, client, over_proxy, proxy, Company(sessions, pool, make_run, heartbeat))
        await engine.dispose()


def _filled(given: Any, made: dict[str, str]) -> Any:
    if isinstance(given, dict):
        return {key: _filled(value, made) for key, value in given.items()}
    return given.format(**made) if isinstance(given, str) else given


async def _send(client: httpx.AsyncClient, route: str, made: dict[str, str], key: str) -> httpx.Response:
    method, _, path = route.partition(" ")
    headers = {"Idempotency-Key": key} if method == "post" else {"If-Match": '"1"'}
    body = _filled(ORDERS[route].body, made)
    return await client.request(method, path.format(**made), json=body, headers=headers)


def test_every_route_that_changes_something_loses_an_answer(tmp_path: Path, sessions: Sessions) -> None:
    paths = _app(tmp_path, sessions).openapi()["paths"]
    found = {f"{method} {path}" for path, methods in paths.items() for method in methods if method != "get"}
    assert found == set(ORDERS)


async def test_a_request_whose_answer_is_lost_is_done_once_however_often_it_is_sent(desk: Desk, crew: Crew) -> None:
    lost = 0
    for route, order in ORDERS.items():
        made, key = await desk.prepare(order.before), f"key-{uuid4().hex}"
        if order.shared:
            await _send(desk.client, route, made, key)
        before = await desk.rows()
        calm = await _send(desk.client, route, made, key)
        assert calm.status_code < 300, (route, calm.text)
        grown = {name: count - before[name] for name, count in (await desk.rows()).items()}

        made, key = await desk.prepare(order.before), f"key-{uuid4().hex}"
        before = await desk.rows()
        loss = desk.proxy.lose(order.mark or key.encode())
        answer = await _send(desk.lossy, route, made, key)
        assert loss.happened == 1, (route, answer.text)
        assert answer.status_code == 503, (route, answer.text)
        lost += loss.happened
        again = await _send(desk.lossy, route, made, key)
        assert again.status_code == (order.again or calm.status_code), (route, again.text)
        assert ("Idempotent-Replay" in again.headers) == route.startswith("post"), route
        assert {name: count - before[name] for name, count in (await desk.rows()).items()} == grown, route
    numbers.report("reply lost: api", lost, len(ORDERS), "requests", routes=len(ORDERS))
