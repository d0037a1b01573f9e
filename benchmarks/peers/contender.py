"""What every engine is asked to do: start, take a run over its API, say how many runs are done, stop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import asyncpg

from benchmarks.rig import place
from benchmarks.rig.place import Servers
from benchmarks.rig.wire import Lines

CONNECTIONS = 64
"""Connections of the client; requests of runs that are submitted at once share them."""


class Contender(Protocol):
    """One engine under measurement."""

    name: str
    keeps: str
    """What it keeps when its process dies."""

    def running(self, servers: Servers) -> Any:
        """A context in which its processes are up."""
        ...

    async def open(self) -> None: ...

    async def prepare(self, count: int) -> list[Any]:
        """Make what runs need, outside the clock."""
        ...

    async def submit(self, identity: Any, number: int) -> None: ...

    async def ended(self) -> int: ...

    async def close(self) -> None: ...

    def pids(self) -> list[int]:
        """Its processes."""
        ...


class Company:
    """The company: an api process, worker processes, Celery as the doorbell."""

    keeps = "every node with its rows and events; a run goes on in another process after its lease"

    def __init__(self, workers: int = 1) -> None:
        self.name = f"the company, {workers} worker{'s' * (workers > 1)}"
        self._workers = workers

    @contextmanager
    def running(self, servers: Servers) -> Iterator[None]:
        with servers.database() as url, place.company(servers, url, workers=self._workers) as self.up:
            yield

    def pids(self) -> list[int]:
        return self.up.pids

    async def open(self) -> None:
        self._database = await asyncpg.connect(self.up.database_url)
        self._lines = Lines(self.up.port, CONNECTIONS)

    async def prepare(self, count: int) -> list[Any]:
        settings = {"graph": "steps", "sandbox": {"level": "unsafe"}}
        made = await self._database.fetch(
            "INSERT INTO projects (name, brief, status, template_slug, template_version, config_patch)"
            " SELECT 'bench', 'run=' || n, 'READY', 'lean', 1, $2::jsonb FROM generate_series(1, $1) n RETURNING id",
            count,
            json.dumps(settings),
        )
        return [row["id"] for row in made]

    async def submit(self, identity: Any, number: int) -> None:
        await self._lines.ask("POST", f"/api/projects/{identity}/runs", {})

    async def ended(self) -> int:
        found: int = await self._database.fetchval("SELECT count(*) FROM project_runs WHERE ended_at IS NOT NULL")
        return found

    async def check(self) -> None:
        """Every run completed, with all its rows."""
        odd = await self._database.fetch("SELECT status, error FROM project_runs WHERE status <> 'COMPLETED' LIMIT 3")
        if odd:
            raise RuntimeError(f"Runs did not complete: {odd}")

    async def close(self) -> None:
        self._lines.close()
        await self.check()
        await self._database.close()
