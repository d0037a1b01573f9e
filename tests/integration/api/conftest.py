"""The API over a database of the test's own, called through ASGI: every layer but the socket is real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI

from backend.adapters.db.engine import Sessions
from backend.adapters.db.tables import ProjectTemplate
from backend.api.app import create_app
from backend.api.installation import Installation
from backend.engine.health import Check
from backend.settings import Settings


class Quiet:
    """A bell in this process: it notes what it was told, and wakes the followers here."""

    def __init__(self) -> None:
        self.rung: list[UUID] = []
        self.queues: dict[UUID | None, list[asyncio.Queue[None]]] = {}
        self.said: asyncio.Queue[bytes] = asyncio.Queue()

    async def words(self, run_id: UUID) -> AsyncIterator[bytes]:
        while True:
            yield await self.said.get()

    def ring(self, run_id: UUID) -> None:
        self.rung.append(run_id)

    def wake(self, run_id: UUID) -> None:
        for queue in (*self.queues.get(run_id, []), *self.queues.get(None, [])):
            queue.put_nowait(None)

    async def subscribe(self, run_id: UUID | None) -> AsyncIterator[object]:
        queue: asyncio.Queue[None] = asyncio.Queue()
        self.queues.setdefault(run_id, []).append(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self.queues[run_id].remove(queue)


@pytest.fixture
def bell() -> Quiet:
    return Quiet()


@pytest.fixture
async def template(sessions: Sessions) -> None:
    async with sessions.begin() as session:
        session.add(
            ProjectTemplate(
                slug="standard",
                version=1,
                title="Standard",
                graph="software_company",
                config_patch={"budget": {"tokens": 100_000}},
                content_hash="0" * 64,
            )
        )


async def _well() -> Sequence[Check]:
    return [Check("database", "ok", "It answers.")]


async def _workers() -> dict[str, str]:
    return {}


@pytest.fixture
def app(settings: Settings, sessions: Sessions, bell: Quiet, template: None) -> FastAPI:
    return create_app(
        Installation(
            home=settings.home,
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


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://company") as client:
        yield client
    await app.state.streams.close()


Post = Callable[..., Awaitable[Any]]


@pytest.fixture
def new_project(client: httpx.AsyncClient) -> Post:
    async def make(**values: Any) -> Any:
        answer = await client.post(
            "/api/projects", json={"name": "Greeter", "brief": "A library that greets."} | values
        )
        assert answer.status_code == 201, answer.text
        return answer.json()

    return make


@pytest.fixture
def new_run(client: httpx.AsyncClient, new_project: Post) -> Post:
    async def make(**config: Any) -> Any:
        project = await new_project()
        answer = await client.post(f"/api/projects/{project['id']}/runs", json={"config": config})
        assert answer.status_code == 201, answer.text
        return answer.json()

    return make
