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
from tests.small_company import BRIEF

PRICES = {"input": 1, "output": 2}
CALL_USD = Decimal("0.0006")
"""What one call of `SmallCompany` costs: 400 tokens in, 100 out."""


class Firm(Crew):
    """Workers that run the company's own graph with the models of a `SmallCompany`."""

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

    async def until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Wait for something outside the database."""
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.02)

    async def becomes(self, run_id: UUID, status: str, seconds: float = 90) -> None:
        """Wait for a status."""
        async with asyncio.timeout(seconds):
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
