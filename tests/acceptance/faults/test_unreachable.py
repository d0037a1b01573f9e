"""A network between us and the database that swallows, delays and resets, and a disk without room: nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest

from backend.adapters.db import migrate
from backend.adapters.db.engine import connect, sessions_of
from backend.engine.embedded import database, place
from backend.engine.embedded.place import Place
from tests.acceptance.faults import numbers
from tests.acceptance.faults.conftest import Crew
from tests.acceptance.faults.desk import Desk
from tests.acceptance.faults.nursery import Nursery
from tests.acceptance.faults.proxy import Proxy
from tests.acceptance.faults.test_crashes import CALLS

HUNG_SECONDS = 60.0
"""A request that has no answer by then hangs: the api gives a database up long before."""


class Visitors:
    """People who ask the api for things all the time, and note what they are answered."""

    def __init__(self, desk: Desk, run_id: UUID) -> None:
        self._desk, self._run_id = desk, run_id
        self.answers: Counter[int] = Counter()
        self.longest = 0.0
        self.last_refused = 0.0

    async def visit(self) -> None:
        """Ask until cancelled; several at once."""
        reading = (self._ask("GET", path) for path in (f"/api/runs/{self._run_id}", "/api/runs", "/api/tasks"))
        await asyncio.gather(*reading, self._ask("PUT", "/api/budget", json={"tokens": 9_000_000_000}))

    async def _ask(self, method: str, path: str, **body: Any) -> None:
        while True:
            began = time.monotonic()
            try:
                async with asyncio.timeout(HUNG_SECONDS):
                    status = (await self._desk.client.request(method, path, **body)).status_code
            except (TimeoutError, httpx.TimeoutException):
                status = -1
            self.longest = max(self.longest, time.monotonic() - began)
            self.answers[status] += 1
            if status != 200:
                self.last_refused = time.monotonic()
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def visited(desk: Desk, run_id: UUID) -> AsyncIterator[Visitors]:
    visitors = Visitors(desk, run_id)
    task = asyncio.create_task(visitors.visit())
    try:
        yield visitors
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _check(case: str, visitors: Visitors, back: float, faults: int, wanted: int, what: str, **more: object) -> None:
    refused = visitors.answers[503]
    seconds = round(max(0.0, visitors.last_refused - back), 1)
    told = {
        "api answers": visitors.answers[200],
        "refused with 503": refused,
        "longest seconds": round(visitors.longest),
    }
    numbers.report(case, faults, wanted, what, **told, **{"seconds until the api was back": seconds}, **more)
    assert set(visitors.answers) <= {200, 503}, visitors.answers


async def test_a_network_that_swallows_delays_and_resets_costs_a_delay_and_nothing_else(
    crew: Crew, nursery: Nursery
) -> None:
    rounds, chance = numbers.of(10), random.Random(13)
    faults: Counter[str] = Counter()
    async with Proxy(crew.database_url) as proxy:
        through = {"DATABASE_URL": proxy.url}
        for _ in range(2):
            nursery.start(crew.environment | through)
        made = [await crew.run() for _ in range(3)]
        async with Desk(crew, nursery, **through) as desk, visited(desk, made[0]) as visitors:
            for _ in range(rounds):
                made += [await crew.run() for _ in range(4)]
                await asyncio.sleep(chance.uniform(0.5, 1.5))
                faults["resets"] += proxy.reset()
                await asyncio.sleep(chance.uniform(0.5, 1.5))
                proxy.delay = 0.3
                await asyncio.sleep(1.5)
                proxy.delay = 0.0
                proxy.swallowing = True
                await asyncio.sleep(chance.uniform(3, 12))
                proxy.swallowing = False
                back = time.monotonic()
            await crew.ended(*made, seconds=200)
            recovered = time.monotonic() - back
            while visitors.answers[200] == 0 or visitors.last_refused > time.monotonic() - 1:
                await asyncio.sleep(0.2)
    swallowed = {
        "connections swallowed": proxy.swallowed,
        "resets": faults["resets"],
        "delayed messages": proxy.delayed,
    }
    done = round(recovered, 1)
    _check(
        "black hole", visitors, back, rounds, rounds, "rounds", **swallowed, **{"seconds until all runs ended": done}
    )
    assert proxy.swallowed >= rounds
    assert faults["resets"] >= rounds
    assert set(await crew.query("SELECT status FROM project_runs")) == {("COMPLETED",)}, crew.log()
    await crew.check()
    cut = (await crew.query("SELECT count(*) FROM model_calls WHERE status = 'failed'"))[0][0]
    assert sum(crew.asked.values()) <= CALLS * len(made) + cut
    stories = [await crew.story(run_id) for run_id in made]
    assert all(story == stories[0] for story in stories)


class Disk:
    """The data of a server on a small file system of its own, which can be filled up."""

    def __init__(self, spot: Place, logs: Path) -> None:
        self.spot, self.logs = spot, logs
        server = database.start(spot, logs, durable=True)
        self.port = server.port
        server.stop()
        self.data = spot.folder / "postgres"
        aside = spot.folder / "aside"
        self.data.rename(aside)
        self.data.mkdir()
        facts = aside.stat()
        mounted = ["mount", "-t", "tmpfs", "-o", f"size=160m,mode=0700,uid={facts.st_uid},gid={facts.st_gid}"]
        done = subprocess.run([*mounted, "tmpfs", str(self.data)], capture_output=True, text=True, check=False)
        if done.returncode:
            self.data.rmdir()
            pytest.skip(f"A small disk needs a mount, which this machine refuses: {done.stderr.strip()}")
        subprocess.run(["cp", "-a", f"{aside}/.", str(self.data)], check=True)
        shutil.rmtree(aside)
        self.server = database.start(spot, logs, self.port, durable=True)

    def fill(self) -> int:
        """Take all the room there is; returns how many bytes that was."""
        taken = 0
        with (self.data / "ballast").open("ab", buffering=0) as ballast, contextlib.suppress(OSError):
            while True:
                taken += ballast.write(b"\0" * 65_536)
        return taken

    def free(self) -> bool:
        """Give the room back, and start the server again if it died; returns whether it had to."""
        (self.data / "ballast").unlink()
        if self.server.child.process.poll() is None:
            return False
        self.server = database.start(self.spot, self.logs, self.port, durable=True)
        return True

    def close(self) -> None:
        """Stop the server and unmount."""
        self.server.stop()
        subprocess.run(["umount", "-l", str(self.data)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if os.geteuid() != 0:
        pytest.skip("A small disk of its own needs a mount, which only root can make.")
    spot = place.find(tmp_path / "servers")
    spot.prepare()
    logs = tmp_path / "server-logs"
    logs.mkdir()
    made = Disk(spot, logs)
    yield made
    made.close()


async def test_a_disk_without_room_costs_a_delay_and_nothing_else(
    disk: Disk, nursery: Nursery, tmp_path: Path, redis_url: str, make_run: Any
) -> None:
    rounds = numbers.of(10)
    url = disk.server.url
    await migrate.upgrade(url)
    engine = connect(url)
    crew = Crew(tmp_path, url, redis_url, sessions_of(engine), make_run)
    refused, restarts = 0, 0
    with crew.server:
        try:
            nursery.start(crew.environment)
            made = [await crew.run() for _ in range(3)]
            async with Desk(crew, nursery) as desk, visited(desk, made[0]) as visitors:
                for _ in range(rounds):
                    made += [await crew.run() for _ in range(4)]
                    await asyncio.sleep(0.5)
                    disk.fill()
                    refused += await _until_refused(crew)
                    await asyncio.sleep(2)
                    restarts += disk.free()
                    back = time.monotonic()
                    await _patiently(crew, made)
                    recovered = round(time.monotonic() - back, 1)
                await asyncio.sleep(1)
            counts = {"server restarts": restarts, "seconds until all runs ended": recovered, "runs": len(made)}
            _check("full disk", visitors, back, refused, rounds, "writes refused", **counts)
            assert set(await crew.query("SELECT status FROM project_runs")) == {("COMPLETED",)}, crew.log()
            await crew.check()
            cut = (await crew.query("SELECT count(*) FROM model_calls WHERE status = 'failed'"))[0][0]
            assert sum(crew.asked.values()) <= CALLS * len(made) + cut
        finally:
            nursery.clear()
            crew.stop()
            await engine.dispose()


async def _until_refused(crew: Crew) -> int:
    """Write until the database says that there is no room, or is gone."""
    async with asyncio.timeout(60):
        while True:
            try:
                await crew.query("CREATE TABLE IF NOT EXISTS ballast (a text)")
                await crew.query("INSERT INTO ballast SELECT repeat('x', 2000) FROM generate_series(1, 500)")
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                return 1


async def _patiently(crew: Crew, made: list[UUID]) -> None:
    """Wait for the ends through whatever the database does meanwhile."""
    async with asyncio.timeout(150):
        while True:
            try:
                await crew.query("DROP TABLE IF EXISTS ballast")
                return await crew.ended(*made, seconds=140)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await asyncio.sleep(0.3)
