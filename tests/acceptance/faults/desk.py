"""An api process by fork that can be killed and comes up again at the same address, and those who ask it for things."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import UUID

import httpx

from backend.adapters.db.tables import ProjectTemplate
from tests.acceptance.faults import numbers
from tests.acceptance.faults.conftest import Crew
from tests.acceptance.faults.nursery import Nursery
from tests.patience import PATIENCE

HUNG_SECONDS = 60.0
"""A request that has no answer by then hangs: the api gives a database up long before."""


class Desk:
    """The api of a crew; `ask` is one request over the wire."""

    def __init__(self, crew: Crew, nursery: Nursery, **environment: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.crew, self._nursery = crew, nursery
        self._environment = environment
        self.pid = 0
        limits = httpx.Limits(max_connections=250, max_keepalive_connections=50)
        # Whoever is behind 200 others on a busy machine waits long for an answer, and gets one.
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENCE, limits=limits)

    async def __aenter__(self) -> Desk:
        self.open()
        await self.ready()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.client.aclose()

    def open(self) -> None:
        """Start the process; it answers a moment later."""
        role = {"NURSERY_ROLE": "api", "COMPANY_PORT": str(self.port)}
        self.pid = self._nursery.start(self.crew.environment | role | self._environment)

    async def kill(self) -> None:
        """End the process without any warning, and wait until its address is free."""
        self._nursery.kill(self.pid)
        while Path(f"/proc/{self.pid}").exists():
            await asyncio.sleep(0.01)

    async def ready(self) -> None:
        """Wait until it answers."""
        async with asyncio.timeout(PATIENCE):
            while await self.status("GET", "/healthz") != 200:
                await asyncio.sleep(0.05)

    async def status(self, method: str, path: str, **options: Any) -> int:
        """The status of the answer; 0 when there is none."""
        try:
            return (await self.client.request(method, path, **options)).status_code
        except httpx.TransportError:
            return 0


class Visitors:
    """People who ask the api for things all the time, and note what they are answered: 0 is no answer."""

    def __init__(self, desk: Desk, run_id: UUID) -> None:
        self._desk, self._run_id = desk, run_id
        self.answers: Counter[int] = Counter()
        self.longest = 0.0
        self.last_refused = 0.0

    async def visit(self) -> None:
        """Ask until cancelled; several at once, of whom one changes a row and one makes rows."""
        reading = (self._ask("GET", path) for path in (f"/api/runs/{self._run_id}", "/api/runs", "/api/tasks"))
        changing = self._ask("PUT", "/api/budget", json={"tokens": 9_000_000_000})
        making = self._ask("POST", "/api/projects", json={"name": "Greeter", "brief": "A library that greets. " * 80})
        await asyncio.gather(*reading, changing, making)

    async def _ask(self, method: str, path: str, **body: Any) -> None:
        while True:
            began = time.monotonic()
            try:
                async with asyncio.timeout(HUNG_SECONDS):
                    status = (await self._desk.client.request(method, path, **body)).status_code
            except (TimeoutError, httpx.TransportError):
                status = 0
            self.longest = max(self.longest, time.monotonic() - began)
            status = 200 if status == 201 else status
            self.answers[status] += 1
            if status != 200:
                self.last_refused = time.monotonic()
            await asyncio.sleep(0.05)

    def report(self, case: str, back: float, faults: int, wanted: int, what: str, **more: object) -> None:
        """Put the case into the table, and hold that nobody was answered with anything but 200 or 503.

        `back` is the monotonic time at which the database could be reached again for good.
        """
        seconds = round(max(0.0, self.last_refused - back), 1)
        told = {"api answers": self.answers[200], "refused with 503": self.answers[503]}
        told |= {"longest seconds": round(self.longest)}
        numbers.report(case, faults, wanted, what, **told, **{"seconds until the api was back": seconds}, **more)
        assert set(self.answers) <= {200, 503}, self.answers


@contextlib.asynccontextmanager
async def visited(desk: Desk, run_id: UUID) -> AsyncIterator[Visitors]:
    """Let people ask for things as long as the block."""
    async with desk.crew.sessions.begin() as session:
        described = {"title": "Standard", "graph": "software_company", "content_hash": "0" * 64}
        session.add(ProjectTemplate(slug="standard", version=1, config_patch={}, **described))
    visitors = Visitors(desk, run_id)
    task = asyncio.create_task(visitors.visit())
    try:
        yield visitors
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
