"""The database is migrated while workers of the previous release drive runs, and both releases work side by side.

The previous release is its own code, frozen in `previous/`: its workers drive, and its api's part starts runs.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from backend.adapters.db import migrate
from backend.adapters.db.engine import connect, sessions_of
from tests.acceptance.faults import numbers
from tests.acceptance.faults.conftest import ROOT, Crew
from tests.acceptance.faults.nursery import Nursery
from tests.acceptance.faults.test_crashes import CALLS
from tests.patience import PATIENCE

REVISION = "0002"
"""The newest migration that the frozen release knows."""
FROZEN = Path(__file__).parent / "previous" / "release.tar.xz"
BLOCKED = "2s"
"""A query that waits for a lock for longer than this is refused, and the test fails."""
THINKING_SECONDS = 0.15
"""Models that take so long let a run last for seconds: it is on its way when releases change."""
_PROBES = (
    "SELECT count(*) FROM project_runs r JOIN events e ON e.run_id = r.id WHERE r.ended_at IS NULL",
    "UPDATE project_runs SET updated_at = updated_at WHERE id = (SELECT id FROM project_runs ORDER BY id LIMIT 1)",
    "UPDATE questions SET text = text WHERE false",
    "INSERT INTO tenants (id, name) SELECT gen_random_uuid(), 'nobody' WHERE false",
)
_DRIVEN = (
    "SELECT run_id, array_agg(DISTINCT split_part(payload ->> 'owner', '/', 2)::int) FROM events"
    " WHERE type IN ('run.started', 'run.resumed') GROUP BY run_id"
)
_HELD = "SELECT id FROM project_runs WHERE status = 'RUNNING' AND split_part(lease_owner, '/', 2) = $1"
_PINNED = "SELECT id, graph, graph_version, config_snapshot::text FROM project_runs"


@pytest.fixture
def old_release(tmp_path: Path) -> Path:
    """The unpacked code of the previous release."""
    folder = tmp_path / "previous"
    with tarfile.open(FROZEN) as archive:
        # What the filter keeps out is not in our own archive; the first releases of Python 3.11 have none.
        archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return folder


@pytest.fixture
async def old_crew(
    tmp_path: Path, empty_database: Callable[[], Awaitable[str]], redis_url: str, make_run: Any
) -> AsyncIterator[Crew]:
    """A crew over a database of the previous release."""
    url = await empty_database()
    await migrate.upgrade(url, to=REVISION)
    engine = connect(url)
    made = Crew(tmp_path, url, redis_url, sessions_of(engine), make_run)
    # Nobody dies here: a lease that outlives a busy machine, and time to come to a node edge when asked to leave.
    made.environment |= {"COMPANY_ENGINE__LEASE_SECONDS": "20", "COMPANY_ENGINE__HEARTBEAT_SECONDS": "2"}
    made.environment |= {"COMPANY_ENGINE__SHUTDOWN_SECONDS": "20", "COMPANY_ENGINE__CONCURRENCY": "3"}
    made.pace = THINKING_SECONDS
    with made.server:
        yield made
        made.stop()
    await engine.dispose()


class Prober:
    """Reads and writes the busiest tables all the time; no query of it may wait for a lock for long."""

    def __init__(self, url: str) -> None:
        self._url, self.queries, self.longest = url, 0, 0.0

    async def run(self) -> None:
        """Probe until cancelled; raises when a query was blocked."""
        connection = await asyncpg.connect(self._url, server_settings={"lock_timeout": BLOCKED})
        try:
            while True:
                for statement in _PROBES:
                    began = time.monotonic()
                    await connection.execute(statement)
                    self.longest = max(self.longest, time.monotonic() - began)
                    self.queries += 1
                await asyncio.sleep(0.02)
        finally:
            connection.terminate()


class Release:
    """The code of the previous release, as processes: one that starts runs, and workers."""

    def __init__(self, crew: Crew, folder: Path) -> None:
        self._crew, self._folder = crew, folder
        self.pids: set[int] = set()
        self._office: subprocess.Popen[bytes] | None = None

    def worker(self) -> int:
        """Start a worker."""
        self.pids.add((made := self._start("backend.worker.app")).pid)
        return made.pid

    def open(self, most: int) -> None:
        """Keep so many runs on their way from now on, started as the api of this release would."""
        order = {"url": self._crew.database_url, "config": self._crew.config().model_dump(mode="json"), "most": most}
        module = "tests.acceptance.faults.previous.office"
        self._office = self._start(module, stdin=subprocess.PIPE)
        assert self._office.stdin is not None
        self._office.stdin.write(json.dumps(order).encode() + b"\n")
        self._office.stdin.flush()

    async def leave(self) -> None:
        """Ask its worker to leave while it holds runs; they go on elsewhere."""
        (worker,) = [worker for worker in self._crew.workers if worker.pid in self.pids]
        await _busy(self._crew, worker.pid)
        worker.send_signal(signal.SIGTERM)
        await self._crew.died(worker)
        assert worker.returncode == 0

    async def close(self) -> None:
        """Start no more runs."""
        assert self._office is not None and self._office.stdin is not None
        self._office.stdin.close()
        await self._crew.died(self._office)
        assert self._office.returncode == 0

    def _start(self, module: str, **more: Any) -> subprocess.Popen[bytes]:
        """A process that finds the tests' graph here, and everything of ours there."""
        path = f"{self._folder}:{self._crew.environment['PYTHONPATH']}"
        environment = {**self._crew.environment, "PYTHONPATH": path}
        made = subprocess.Popen([sys.executable, "-m", module], cwd=self._folder, env=environment, **more)
        self._crew.workers.append(made)
        return made


async def _upgrade(url: str, how_many: int) -> None:
    program = f"import asyncio; from backend.adapters.db import migrate; asyncio.run(migrate.upgrade({url!r}))"
    started = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", program, cwd=ROOT, stderr=asyncio.subprocess.PIPE)
        for _ in range(how_many)
    ]
    for process in started:
        said = (await process.communicate())[1].decode()
        assert process.returncode == 0, said


async def _busy(crew: Crew, pid: int) -> None:
    """Wait until a worker holds a run."""
    async with asyncio.timeout(PATIENCE):
        while not await crew.query(_HELD, str(pid)):
            await asyncio.sleep(0.02)


async def test_a_migration_under_load_blocks_nobody_and_both_releases_work_side_by_side(
    old_crew: Crew, old_release: Path, nursery: Nursery
) -> None:
    crew, upgrades, prober = old_crew, max(2, numbers.of(10)), Prober(old_crew.database_url)
    release = Release(crew, old_release)
    release.open(most=6)
    first = release.worker()
    probing = asyncio.create_task(prober.run())
    await _busy(crew, first)
    pinned = set(await crew.query(_PINNED))
    await _upgrade(crew.database_url, upgrades)
    assert await crew.query("SELECT version_num FROM alembic_version") == [(migrate.head(),)]

    # Forward while both are there, back again, and forward for good.
    new = nursery.start(crew.environment)
    await _busy(crew, first)
    await _busy(crew, new)
    os.kill(new, signal.SIGTERM)
    await nursery.gone(new)
    for _ in range(3):
        await crew.run()
    await _busy(crew, first)
    nursery.start(crew.environment)
    await release.leave()
    await release.close()
    started = [row[0] for row in await crew.query("SELECT id FROM project_runs")]
    await crew.ended(*started)
    assert not probing.done(), probing.exception()
    probing.cancel()

    driven = {run_id: set(pids) for run_id, pids in await crew.query(_DRIVEN)}
    owners = list(driven.values())
    by_old, by_new = (
        sum(bool(pids & release.pids) for pids in owners),
        sum(bool(pids - release.pids) for pids in owners),
    )
    handed = sum(bool(pids & release.pids) and bool(pids - release.pids) for pids in owners)
    counts = {"runs": len(started), "driven by the old": by_old, "by the new": by_new, "by both": handed}
    counts |= {"queries of the prober": prober.queries, "its slowest in seconds": round(prober.longest, 2)}
    numbers.report("live migration", upgrades, max(2, numbers.of(10)), "upgrades at once", **counts)
    assert handed > 0, "no run went on under the other release"
    assert set(await crew.query("SELECT status FROM project_runs")) == {("COMPLETED",)}, crew.log()
    assert set(pinned) <= set(await crew.query(_PINNED))
    unpinned = {run_id for (run_id,) in await crew.query("SELECT id FROM project_runs WHERE prompts IS NULL")}
    assert unpinned == {run_id for run_id, pids in driven.items() if pids <= release.pids}
    assert await crew.query("SELECT id FROM model_calls WHERE status <> 'done'") == []
    assert sum(crew.asked.values()) == CALLS * len(started)
    await crew.check()
    stories = [await crew.story(run_id) for run_id in started]
    assert all(story == stories[0] for story in stories)
