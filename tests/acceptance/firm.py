"""Workers that run the company's own graph: what acceptance tests hire, watch, kill and look into."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from backend.adapters.db.tables import Project
from backend.domain.config import RunConfig
from graphs.software_company import GRAPH
from tests.acceptance.faults.conftest import Crew
from tests.acceptance.faults.nursery import Nursery
from tests.patience import PATIENCE
from tests.small_company import BRIEF

PRICES = {"input": 1, "output": 2}
CALL_USD = Decimal("0.0006")
"""What one call of `SmallCompany` costs: 400 tokens in, 100 out."""


class Worker:
    """A worker process of the nursery, to look at and to kill."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.pid, self._nursery = pid, nursery

    def kill(self) -> None:
        """End it without any warning."""
        self._nursery.kill(self.pid)

    def poll(self) -> int | None:
        """None while it lives."""
        return None if Path(f"/proc/{self.pid}").exists() else 0


class Firm(Crew):
    """Workers that run the company's own graph with the models of a `SmallCompany`.

    Their leases outlive a busy machine: whoever loses one makes a call in flight again. `let_leases_end` spares the
    wait for those of the dead.
    """

    def __init__(self, *args: Any, nursery: Nursery) -> None:
        super().__init__(*args)
        self._nursery = nursery
        self.environment |= {"COMPANY_ENGINE__LEASE_SECONDS": "20", "COMPANY_ENGINE__HEARTBEAT_SECONDS": "2"}

    def start(self, **environment: str) -> Worker:
        """Start a worker; it is forked from a process that has imported everything."""
        worker = Worker(self._nursery, self._nursery.start(self.environment | environment))
        self.workers.append(worker)
        return worker

    def stop(self) -> None:
        """End what is left, without any warning."""
        self._nursery.clear()

    def log(self) -> str:
        """The end of what the workers said."""
        return self._nursery.path.read_text()[-6000:]

    async def begin(self, brief: str = BRIEF, **patch: Any) -> UUID:
        """Start a run with these settings on top."""
        models = {
            "provider": "loopback",
            "default": "scripted",
            "prices": {"scripted": PRICES},
            "providers": {"loopback": {"base_url": self.server.base_url}},
        }
        config = RunConfig.model_validate({"models": models, **patch})
        async with self.sessions.begin() as session:
            run = await self.make_run(session, config=config, brief=brief, graph_version=GRAPH.version)
            project = await session.get_one(Project, run.project_id)
            project.active_run_id = run.id
        return run.id

    async def one(self, column: str, run_id: UUID) -> Any:
        """One column of a run."""
        return (await self.query(f"SELECT {column} FROM project_runs WHERE id = $1", run_id))[0][0]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something outside the database."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0.02)

    async def becomes(self, run_id: UUID, status: str) -> None:
        """Wait for a status."""
        async with asyncio.timeout(PATIENCE):
            while await self.one("status", run_id) != status:
                await asyncio.sleep(0.05)

    async def explain(self, run_id: UUID) -> str:
        """Why a run ended as it did, for a failing test."""
        rows = await self.query("SELECT status, stop_reason, error FROM project_runs WHERE id = $1", run_id)
        return f"{rows}\n{self.log()}"

    def tree(self, project_id: UUID) -> dict[str, str]:
        """The files of the delivered branch by path, with the hash of their content."""
        listed = subprocess.run(
            ["git", f"--git-dir={self.home}/repositories/{project_id}.git", "ls-tree", "-r", "main"],
            check=True,
            capture_output=True,
            text=True,
        )
        rows = (row.split("\t") for row in listed.stdout.splitlines())
        return {path: head.split()[2] for head, path in rows}

    @property
    def home(self) -> Path:
        """The state directory of the workers."""
        return Path(self.environment["COMPANY_HOME"])
