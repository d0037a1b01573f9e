"""A worker is killed in the middle of a node, and a person stops and retries its run from outside."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from backend.adapters.db.engine import Sessions
from tests.acceptance.faults.conftest import ROOT, Crew
from tests.acceptance.faults.test_crashes import CALLS, PARALLEL
from tests.openai_server import Reply
from tests.patience import PATIENCE

HELD = 6
"""The request that is answered only when the worker that sent it is long dead."""
PAID = (
    "SELECT id FROM model_calls c WHERE status = 'done' AND NOT EXISTS (SELECT FROM model_calls d WHERE d.id <> c.id"
    " AND (d.run_id, d.node, d.visit, d.ordinal) = (c.run_id, c.node, c.visit, c.ordinal) AND d.attempt > c.attempt)"
)
"""The calls that were answered and never made again."""


class Office(Crew):
    """A crew, and the two ways in which a person reaches it: the command line and the api."""

    api = ""

    def _answer(self, request: dict[str, Any]) -> Reply:
        answer = super()._answer(request)
        return answer.after(60) if sum(self.asked.values()) == HELD else answer

    async def order(self, way: str, verb: str, run_id: UUID) -> None:
        """Stop or retry a run."""
        done = await asyncio.to_thread(self._by_api if way == "api" else self._by_command, verb, run_id)
        assert done == "", done

    async def open_api(self) -> None:
        """Start the api in a process of its own, and wait for it."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.api = f"http://127.0.0.1:{port}"
        with (self._logs / "api.log").open("wb") as log:
            command = [sys.executable, "-m", "backend.cli.server"]
            environment = self.environment | {"COMPANY_PORT": str(port)}
            self.workers.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))
        async with asyncio.timeout(PATIENCE):
            while not await asyncio.to_thread(_answers, f"{self.api}/readyz"):
                await asyncio.sleep(0.1)

    def _by_command(self, verb: str, run_id: UUID) -> str:
        command = [sys.executable, "-c", "from backend.cli import main; main()", verb, str(run_id)]
        done = subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        return done.stderr or ("" if done.returncode == 0 else f"exit code {done.returncode}")

    def _by_api(self, verb: str, run_id: UUID) -> str:
        request = urllib.request.Request(f"{self.api}/api/runs/{run_id}/{verb}", data=b"", method="POST")
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE):
                return ""
        except urllib.error.HTTPError as refused:
            return refused.read().decode()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture
def office(tmp_path: Path, database_url: str, redis_url: str, sessions: Sessions, make_run: Any) -> Iterator[Office]:
    made = Office(tmp_path, database_url, redis_url, sessions, make_run)
    with made.server:
        yield made
        made.stop()


@pytest.fixture(params=["cli", "api"])
async def way(office: Office, request: pytest.FixtureRequest) -> str:
    """How the person gives orders; the api is a process of its own, and up."""
    if request.param == "api":
        await office.open_api()
    return str(request.param)


async def test_a_run_whose_worker_was_killed_is_stopped_and_retried_and_pays_nothing_twice(
    office: Office, way: str
) -> None:
    run_id = await office.run()
    worker = office.start()
    async with asyncio.timeout(PATIENCE):
        while sum(office.asked.values()) < HELD:
            await asyncio.sleep(0.02)
    worker.kill()
    await office.died(worker)
    paid = await office.query(PAID)
    asked = len(office.server.requests)
    await office.order(way, "stop", run_id)
    # Asked for while the dead worker's lease holds, done at once when it is over.
    (state,) = await office.query("SELECT status, requested FROM project_runs")
    assert state in {("RUNNING", "stop"), ("STOPPED_USER", "none")}

    office.start()
    await office.ended(run_id)
    assert await office.query("SELECT status FROM project_runs") == [("STOPPED_USER",)], office.log()
    assert len(office.server.requests) == asked, "a run that was to stop went on asking"
    await office.check()

    await office.order(way, "retry", run_id)
    await office.ended(run_id)
    assert await office.query("SELECT status FROM project_runs") == [("COMPLETED",)], office.log()
    await office.check()
    assert paid and set(paid) <= set(await office.query(PAID)), "a call that was paid was made again"
    cut = (await office.query("SELECT count(*) FROM model_calls WHERE status = 'failed'"))[0][0]
    assert 1 <= cut <= PARALLEL
    assert sum(office.asked.values()) <= CALLS + cut
    booked = await office.query(
        "SELECT r.spent_usd = sum(c.cost_usd) FROM project_runs r JOIN model_calls c ON c.run_id = r.id GROUP BY r.id"
    )
    assert booked == [(True,)]
