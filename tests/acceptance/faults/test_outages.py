"""Servers that go away under load: the broker for a while, the database again and again."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from backend.adapters.db import migrate
from backend.adapters.db.engine import AWAY, connect, sessions_of
from backend.engine.embedded import broker, database, place
from backend.engine.embedded.place import Place
from tests.acceptance.faults import numbers
from tests.acceptance.faults.conftest import Crew
from tests.acceptance.faults.desk import Desk, visited
from tests.acceptance.faults.nursery import Nursery
from tests.acceptance.faults.test_crashes import CALLS
from tests.acceptance.faults.test_deploys import _start
from tests.patience import PATIENCE


@pytest.fixture
def spot(tmp_path: Path) -> Place:
    found = place.find(tmp_path / "servers")
    found.prepare()
    return found


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    folder = tmp_path / "server-logs"
    folder.mkdir()
    return folder


async def test_runs_go_on_and_the_api_answers_while_the_broker_is_away(
    spot: Place, logs: Path, tmp_path: Path, database_url: str, sessions: Any, make_run: Any, nursery: Nursery
) -> None:
    away = 60 if numbers.FULL else 6
    server = broker.start(spot, logs)
    crew = Crew(tmp_path, database_url, server.url, sessions, make_run)
    with crew.server:
        try:
            made = [await crew.run() for _ in range(4)]
            crew.start()
            async with Desk(crew, nursery) as desk, visited(desk, made[0]) as visitors:
                async with asyncio.timeout(PATIENCE):
                    while len(crew.server.requests) < 4:
                        await asyncio.sleep(0.02)
                server.stop()
                # What the worker has in hand goes on; what is started meanwhile waits for the broker.
                began = time.monotonic()
                made += [await _start(crew, desk, f"Greeter {number}") for number in range(3)]
                starting = round((time.monotonic() - began) / 3, 1)
                await asyncio.sleep(away)
                server = broker.start(spot, logs, server.port)
                back = time.monotonic()
                await crew.ended(*made)
                recovered = round(time.monotonic() - back, 1)
        finally:
            nursery.clear()
            crew.stop()
            server.stop()
    counts = {"runs": len(made), "seconds to start one": starting, "seconds until all runs ended": recovered}
    visitors.report("broker down", back, away, away, "seconds", **counts)
    assert set(visitors.answers) == {200}, "the api needs no broker for an answer"
    assert set(await crew.query("SELECT status FROM project_runs")) == {("COMPLETED",)}, crew.log()
    assert sum(crew.asked.values()) == CALLS * len(made)
    await crew.check()


@pytest.fixture
async def own_database(spot: Place, logs: Path) -> AsyncIterator[list[database.Postgres]]:
    """A database server of the test's own, migrated; the test puts each restarted one at the end of the list."""
    servers = [database.start(spot, logs, durable=True)]
    await migrate.upgrade(servers[0].url)
    yield servers
    servers[-1].stop()


def _restart(spot: Place, logs: Path, server: database.Postgres, how: signal.Signals) -> database.Postgres:
    server.child.process.send_signal(how)
    server.child.process.wait(PATIENCE)
    return database.start(spot, logs, server.port, durable=True)


@numbers.patience(20)
async def test_a_database_that_restarts_again_and_again_loses_nothing(
    own_database: list[database.Postgres],
    spot: Place,
    logs: Path,
    tmp_path: Path,
    redis_url: str,
    make_run: Any,
    nursery: Nursery,
) -> None:
    wanted, chance = numbers.of(40), random.Random(11)
    url = own_database[0].url
    engine = connect(url)
    crew = Crew(tmp_path, url, redis_url, sessions_of(engine), make_run)
    restarts = {signal.SIGINT: 0, signal.SIGQUIT: 0}
    with crew.server:
        try:
            made = await crew.never_idle()
            for _ in range(2):
                nursery.start(crew.environment)
            async with Desk(crew, nursery) as desk, visited(desk, made[0]) as visitors:
                for number in range(wanted):
                    await _work_for(crew, chance.uniform(4, 10) if numbers.FULL else chance.uniform(1, 3))
                    how = (signal.SIGINT, signal.SIGQUIT)[number % 2]
                    own_database.append(await asyncio.to_thread(_restart, spot, logs, own_database[-1], how))
                    back = time.monotonic()
                    restarts[how] += 1
                await _patiently(crew, "SELECT id FROM project_runs WHERE ended_at IS NULL")
                while visitors.last_refused > time.monotonic() - 1:
                    await asyncio.sleep(0.2)
        finally:
            nursery.clear()
            crew.stop()
            await engine.dispose()
    made = [run_id for (run_id,) in await crew.query("SELECT id FROM project_runs")]
    cut = (await crew.query("SELECT count(*) FROM model_calls WHERE status = 'failed'"))[0][0]
    counts = {
        "fast": restarts[signal.SIGINT],
        "immediate": restarts[signal.SIGQUIT],
        "runs": len(made),
        "calls cut": cut,
    }
    visitors.report("database restarts", back, sum(restarts.values()), wanted, "restarts", **counts)
    assert len(made) >= wanted
    assert set(await crew.query("SELECT status FROM project_runs")) == {("COMPLETED",)}, crew.log()
    await crew.check()
    assert sum(crew.asked.values()) <= CALLS * len(made) + cut
    stories = [await crew.story(run_id) for run_id in made]
    assert all(story == stories[0] for story in stories)


async def _work_for(crew: Crew, seconds: float) -> None:
    """Keep runs coming for so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        # Connections of before the restart are found out to be dead when they are used.
        with contextlib.suppress(*AWAY):
            await crew.never_idle()
        await asyncio.sleep(0.2)


async def _patiently(crew: Crew, going: str) -> None:
    """Wait until nothing is going on any more, whatever the database does meanwhile."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with contextlib.suppress(*AWAY):
                if not await crew.query(going):
                    return
            await asyncio.sleep(0.3)
