"""Real worker processes, a real model endpoint on loopback, and the invariants that every fault must leave in place."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from backend.adapters.db.engine import Sessions
from backend.adapters.db.tables import Project
from backend.domain.config import RunConfig
from backend.operations import invariants
from tests.acceptance.faults import numbers
from tests.openai_server import OpenAIServer, Reply, text
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[3]


def installed(folder: Path, *graphs: str) -> str:
    """The import path of an installation with a plug-in that offers these graphs of the tests."""
    plugin = folder / "chain-1.dist-info"
    plugin.mkdir(parents=True)
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: chain\nVersion: 1\n")
    offered = "\n".join(f"{graph.lower()} = tests.acceptance.graphs:{graph}" for graph in graphs)
    (plugin / "entry_points.txt").write_text(f"[company.graphs]\n{offered}\n")
    return f"{ROOT}:{folder}"


class Crew:
    """Worker processes over one database, and the runs they work on."""

    pace = 0.02
    """Seconds that a model takes to answer."""

    def __init__(
        self,
        tmp_path: Path,
        database_url: str,
        redis_url: str,
        sessions: Sessions,
        make_run: Any,
        server: OpenAIServer | None = None,
    ) -> None:
        self.sessions, self.make_run, self.database_url = sessions, make_run, database_url
        self.asked: Counter[str] = Counter()
        self._counting = threading.Lock()
        self.server = server or OpenAIServer(self._answer)
        self.workers: list[subprocess.Popen[bytes]] = []
        self._logs = tmp_path / "logs"
        self._logs.mkdir()
        self._connection: Any = None
        self._asking = asyncio.Lock()
        self.environment = {
            **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            "PYTHONPATH": installed(tmp_path / "plugin", "CHAIN"),
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "COMPANY_HOME": str(tmp_path / "home"),
            "COMPANY_ENGINE__LEASE_SECONDS": "2",
            "COMPANY_ENGINE__HEARTBEAT_SECONDS": "0.3",
            "COMPANY_ENGINE__REAPER_SECONDS": "0.3",
            "COMPANY_ENGINE__MAX_CLAIMS": "100",
            "COMPANY_ENGINE__SHUTDOWN_SECONDS": "3",
        }

    def _answer(self, request: dict[str, Any]) -> Reply:
        said = request["messages"][-1]["content"]
        with self._counting:
            self.asked[said] += 1
        # Parts that are done in the same instant commit together: here each kind of commit is to be seen.
        later = {"b": 0.2, "c": 0.4}.get(said[:1], 0.0)
        return text(f"answer to {said}").billed(100, 20).after(self.pace * (1 + later))

    def config(self, **changes: Any) -> RunConfig:
        return RunConfig.model_validate(
            {
                "graph": "chain",
                "models": {
                    "provider": "loopback",
                    "default": "scripted",
                    "prices": {"scripted": {"input": 1, "output": 2}, "cheaper": {"input": 0, "output": 0}},
                    "providers": {"loopback": {"base_url": self.server.base_url}},
                },
                "sandbox": {"level": "unsafe"},
            }
            | changes
        )

    async def run(self, brief: str = "go", **config: Any) -> UUID:
        async with self.sessions.begin() as session:
            run = await self.make_run(session, config=self.config(**config), brief=brief)
            project = await session.get_one(Project, run.project_id)
            project.active_run_id = run.id
        return run.id

    def start(self, *, crash_at: str = "", **environment: str) -> subprocess.Popen[bytes]:
        with (self._logs / f"{len(self.workers)}.log").open("wb") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "backend.worker.app"],
                cwd=ROOT,
                env={**self.environment, "COMPANY_ENGINE__CRASH_AT": crash_at, **environment},
                stdout=log,
                stderr=log,
            )
        self.workers.append(worker)
        return worker

    def log(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in sorted(self._logs.iterdir()))

    def stop(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGKILL)
            worker.wait()
        if self._connection is not None:
            self._connection.terminate()

    async def ended(self, *runs: UUID) -> None:
        """Wait until the runs have ended."""
        async with asyncio.timeout(PATIENCE):
            while await self.query("SELECT id FROM project_runs WHERE id = ANY ($1) AND ended_at IS NULL", list(runs)):
                await asyncio.sleep(0.1)

    async def busy(self) -> set[int]:
        """The process ids of the workers that hold a run."""
        rows = await self.query(
            "SELECT split_part(lease_owner, '/', 2) FROM project_runs"
            " WHERE status = 'RUNNING' AND lease_owner IS NOT NULL"
        )
        return {int(row[0]) for row in rows}

    async def never_idle(self, least: int = 6) -> list[UUID]:
        """Start runs where few are left: a fault that hits nobody who works proves nothing."""
        open_runs = await self.query("SELECT count(*) FROM project_runs WHERE ended_at IS NULL")
        return [await self.run() for _ in range(3)] if open_runs[0][0] < least else []

    async def died(self, worker: subprocess.Popen[bytes]) -> None:
        """Wait until a worker is dead."""
        async with asyncio.timeout(PATIENCE):
            while worker.poll() is None:
                await asyncio.sleep(0.05)

    async def let_leases_end(self) -> None:
        """Spare the wait for the leases of a worker that is dead."""
        await self.query("UPDATE project_runs SET lease_expires_at = clock_timestamp() WHERE lease_owner IS NOT NULL")

    async def query(self, statement: str, *args: Any) -> list[tuple[Any, ...]]:
        """Ask the database, over one connection that is made again when it is lost."""
        async with self._asking:
            if self._connection is None or self._connection.is_closed():
                self._connection = await asyncpg.connect(self.database_url, command_timeout=60)
            try:
                return [tuple(row) for row in await self._connection.fetch(statement, *args)]
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                self._connection.terminate()
                raise

    async def check(self) -> None:
        """Every invariant holds for every run."""
        async with self.sessions() as session:
            for checked in await invariants.check(session):
                assert checked.offences == (), checked.sentence

    async def story(self, run_id: UUID) -> list[tuple[Any, ...]]:
        """What a person reads of a run; the same whatever happened on the way."""
        return await self.query(
            "SELECT 'task' AS kind, key AS a, status AS b FROM tasks WHERE run_id = $1"
            " UNION ALL SELECT 'comment', body, node || visit::text FROM task_comments WHERE run_id = $1"
            " UNION ALL SELECT 'run', status, coalesce((final_report #- '{spent,seconds}')::text, '') FROM project_runs"
            "   WHERE id = $1"
            " UNION ALL SELECT 'call', node || visit::text || '/' || ordinal::text, response ->> 'content'"
            "   FROM model_calls WHERE run_id = $1 AND status = 'done'"
            " UNION ALL SELECT 'event', type, count(*)::text FROM events WHERE run_id = $1"
            "   AND type IN ('task.created', 'task.moved', 'comment.added', 'model.called', 'command.finished')"
            " GROUP BY type ORDER BY 1, 2, 3",
            run_id,
        )


@pytest.fixture(autouse=True)
def told(request: pytest.FixtureRequest) -> None:
    """What this test injects goes into the table at the end of the session."""
    numbers.collect_into(request.node.user_properties)


@pytest.fixture
def crew(tmp_path: Path, database_url: str, redis_url: str, sessions: Sessions, make_run: Any) -> Iterator[Crew]:
    made = Crew(tmp_path, database_url, redis_url, sessions, make_run)
    with made.server:
        yield made
        made.stop()
