"""An api process by fork that can be killed and comes up again at the same address, and a client of it."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from tests.acceptance.faults.conftest import Crew
from tests.acceptance.faults.nursery import Nursery


class Desk:
    """The api of a crew; `ask` is one request over the wire."""

    def __init__(self, crew: Crew, nursery: Nursery, **environment: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._crew, self._nursery = crew, nursery
        self._environment = environment
        self.pid = 0
        limits = httpx.Limits(max_connections=250, max_keepalive_connections=50)
        # Whoever is behind 200 others on a busy machine waits long for an answer, and gets one.
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=120, limits=limits)

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
        self.pid = self._nursery.start(self._crew.environment | role | self._environment)

    async def kill(self) -> None:
        """End the process without any warning, and wait until its address is free."""
        self._nursery.kill(self.pid)
        while Path(f"/proc/{self.pid}").exists():
            await asyncio.sleep(0.01)

    async def ready(self) -> None:
        """Wait until it answers."""
        async with asyncio.timeout(60):
            while await self.status("GET", "/healthz") != 200:
                await asyncio.sleep(0.05)

    async def status(self, method: str, path: str, **options: Any) -> int:
        """The status of the answer; 0 when there is none."""
        try:
            return (await self.client.request(method, path, **options)).status_code
        except httpx.TransportError:
            return 0
