"""A brief of one's own: real workers, a real model endpoint, real git, sandbox and scanners, and every way to end."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from backend.adapters.db.engine import Sessions
from backend.adapters.db.tables import Project
from backend.domain.config import RunConfig
from backend.operations import runs
from tests.acceptance.faults.conftest import Crew
from tests.openai_server import OpenAIServer
from tests.small_company import BRIEF, SmallCompany

PRICES = {"input": 1, "output": 2}
CALL_USD = Decimal("0.0006")
"""What one call of `SmallCompany` costs: 400 tokens in, 100 out."""


class Firm(Crew):
    """Workers that run the company's own graph with the models of a `SmallCompany`."""

    async def begin(self, **patch: Any) -> UUID:
        """Start a run with these settings on top."""
        config = RunConfig.model_validate(
            {
                "models": {
                    "provider": "loopback",
                    "default": "scripted",
                    "prices": {"scripted": PRICES},
                    "providers": {"loopback": {"base_url": self.server.base_url}},
                },
                "checks": {"scanners": ["bandit", "detect-secrets", "secret-rules"]},
                **patch,
            }
        )
        async with self.sessions.begin() as session:
            run = await self.make_run(session, config=config, brief=BRIEF, graph_version=_version())
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


def _version() -> str:
    from graphs.software_company import GRAPH

    return GRAPH.version


@pytest.fixture
def hire(
    tmp_path: Path, database_url: str, redis_url: str, sessions: Sessions, make_run: Any
) -> Iterator[Callable[..., Firm]]:
    """Makes a firm whose models follow a `SmallCompany`."""
    hired: list[Firm] = []

    def make(company: SmallCompany | None = None) -> Firm:
        firm = Firm(tmp_path, database_url, redis_url, sessions, make_run, OpenAIServer(company or SmallCompany()))
        firm.server.__enter__()
        hired.append(firm)
        return firm

    yield make
    for firm in hired:
        firm.stop()
        firm.server.__exit__(None, None, None)


async def test_a_brief_becomes_a_tested_and_scanned_repository(hire: Callable[..., Firm]) -> None:
    firm = hire(SmallCompany(delay=0.2))
    run_id = await firm.begin()
    firm.start()
    await firm.ended(run_id, seconds=150)
    assert await firm.one("status", run_id) == "COMPLETED", await firm.explain(run_id)
    tasks = await firm.query("SELECT key, status FROM tasks WHERE run_id = $1 ORDER BY key", run_id)
    assert tasks == [("cli", "DONE"), ("lines", "DONE"), ("words", "DONE")]
    tree = firm.tree(await firm.one("project_id", run_id))
    assert {"textstat/cli.py", "tests/test_acceptance.py", "README.md", ".github/workflows/ci.yml"} <= tree.keys()
    calls = len(firm.server.requests)
    assert await firm.one("spent_usd", run_id) == CALL_USD * calls
    together = await firm.query(
        "SELECT 1 FROM model_calls a JOIN model_calls b USING (run_id, node)"
        " WHERE node = 'dev_work' AND a.task_key = 'words' AND b.task_key = 'lines'"
        " AND a.created_at < b.settled_at AND b.created_at < a.settled_at"
    )
    assert together, "the two independent tasks were never worked on at the same time"
    await firm.check()


async def test_a_token_limit_stops_the_run_short_of_it_and_a_higher_one_lets_it_go_on(
    hire: Callable[..., Firm], sessions: Sessions
) -> None:
    firm = hire()
    limit = 13_000
    run_id = await firm.begin(budget={"tokens": limit})
    firm.start()
    await firm.ended(run_id, seconds=150)
    assert await firm.one("status", run_id) == "STOPPED_BUDGET", await firm.explain(run_id)
    spent = await firm.one("spent_tokens_input + spent_tokens_output", run_id)
    assert 0 < spent <= limit
    assert spent == 500 * len(firm.server.requests)
    assert (await firm.one("final_report", run_id)) is not None
    await firm.check()
    async with sessions.begin() as session:
        await runs.retry(session, run_id, by="ada", limits=runs.Limits(tokens=10_000_000))
    await firm.ended(run_id, seconds=150)
    assert await firm.one("status", run_id) == "COMPLETED", await firm.explain(run_id)
    assert await firm.one("spent_tokens_input + spent_tokens_output", run_id) == 500 * len(firm.server.requests)


async def test_a_run_paused_in_the_middle_of_a_node_goes_on_after_its_worker_died(
    hire: Callable[..., Firm], sessions: Sessions
) -> None:
    firm = hire(SmallCompany(delay=0.3))
    run_id = await firm.begin()
    worker = firm.start()
    await firm.until(lambda: len(firm.server.requests) >= 5)
    async with sessions.begin() as session:
        await runs.pause(session, run_id, by="ada")
    await firm.becomes(run_id, "PAUSED")
    asked = len(firm.server.requests)
    worker.kill()
    await firm.died(worker)
    await asyncio.sleep(1)
    assert len(firm.server.requests) == asked, "a paused run went on asking"
    async with sessions.begin() as session:
        await runs.resume(session, run_id, by="ada")
    firm.start()
    await firm.ended(run_id, seconds=150)
    assert await firm.one("status", run_id) == "COMPLETED", await firm.explain(run_id)
    assert await firm.one("spent_usd", run_id) == CALL_USD * len(firm.server.requests)
    await firm.check()


async def test_a_run_is_stopped_in_the_middle_of_a_model_call(hire: Callable[..., Firm], sessions: Sessions) -> None:
    firm = hire(SmallCompany(delay=30))
    run_id = await firm.begin()
    firm.start()
    await firm.until(lambda: len(firm.server.requests) >= 1)
    async with sessions.begin() as session:
        await runs.stop(session, run_id, by="ada")
    await firm.ended(run_id, seconds=20)
    assert await firm.one("status", run_id) == "STOPPED_USER", await firm.explain(run_id)
    await firm.check()


async def test_a_credential_in_the_code_stops_the_run_at_the_security_gate(hire: Callable[..., Firm]) -> None:
    firm = hire(SmallCompany(leaks=True))
    run_id = await firm.begin(security={"max_iterations": 1})
    firm.start()
    await firm.ended(run_id, seconds=150)
    assert await firm.one("status", run_id) == "STOPPED_SECURITY", await firm.explain(run_id)
    found = await firm.query("SELECT path, status FROM findings WHERE run_id = $1 AND source = 'security'", run_id)
    assert ("textstat/words.py", "open") in found
    await firm.check()
