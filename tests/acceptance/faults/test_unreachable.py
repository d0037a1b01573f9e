"""A network between us and the database that swallows, delays and resets, and a disk without room: nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from backend.adapters.db import migrate
from backend.adapters.db.engine import connect, sessions_of
from backend.engine.embedded import database, place
from backend.engine.embedded.place import Place
from tests.acceptance.faults import numbers
from tests.acceptance.faults.conftest import Crew
from tests.acceptance.faults.desk import Desk, visited
from tests.acceptance.faults.nursery import Nursery
from tests.acceptance.faults.proxy import Proxy
from tests.acceptance.faults.test_crashes import CALLS
from tests.patience import PATIENCE


@numbers.patience(15)
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
            # A fault that comes before the workers is none.
            await _begun(crew, made[0])
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
            await crew.ended(*made)
            recovered = time.monotonic() - back
            while visitors.answers[200] == 0 or visitors.last_refused > time.monotonic() - 1:
                await asyncio.sleep(0.2)
    swallowed = {
        "connections swallowed": proxy.swallowed,
        "resets": faults["resets"],
        "delayed messages": proxy.delayed,
    }
    done = round(recovered, 1)
    visitors.report("black hole", back, rounds, rounds, "rounds", **swallowed, **{"seconds until all runs ended": done})
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

    def refused(self) -> int:
        """How many statements of others than the test itself were refused for want of room, by the server's own log."""
        told = (self.logs / "postgres.log").read_text(errors="replace")
        statements = re.findall(r"No space left on device\n(?:.*(?:HINT|DETAIL|CONTEXT).*\n)*.*STATEMENT: (.*)", told)
        return sum("ballast" not in statement for statement in statements)

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


@numbers.patience(25)
async def test_a_disk_without_room_costs_a_delay_and_nothing_else(
    disk: Disk, nursery: Nursery, tmp_path: Path, redis_url: str, make_run: Any
) -> None:
    rounds = numbers.of(10)
    url = disk.server.url
    await migrate.upgrade(url)
    engine = connect(url)
    crew = Crew(tmp_path, url, redis_url, sessions_of(engine), make_run)
    fills, hit, restarts = 0, 0, 0
    with crew.server:
        try:
            nursery.start(crew.environment)
            made = [await crew.run() for _ in range(3)]
            async with Desk(crew, nursery) as desk, visited(desk, made[0]) as visitors:
                # On a busy machine all runs may be over when the disk is full: a fill that nobody meets is no fault.
                while hit < rounds:
                    before = disk.refused()
                    made += [await crew.run() for _ in range(20)]
                    # Not before they are on their way, since the room that is left is taken at once.
                    await _begun(crew, made[-10])
                    disk.fill()
                    await _until_refused(crew)
                    fills += 1
                    await asyncio.sleep(2)
                    restarts += disk.free()
                    back = time.monotonic()
                    await _patiently(crew, made)
                    recovered = round(time.monotonic() - back, 1)
                    hit += disk.refused() > before
                await asyncio.sleep(1)
            counts = {"fills in all": fills, "writes of ours refused": disk.refused(), "server restarts": restarts}
            counts |= {"seconds until all runs ended": recovered, "runs": len(made)}
            visitors.report("full disk", back, hit, rounds, "times", **counts)
            assert set(await crew.query("SELECT status FROM project_runs")) == {("COMPLETED",)}, crew.log()
            await crew.check()
            cut = (await crew.query("SELECT count(*) FROM model_calls WHERE status = 'failed'"))[0][0]
            assert sum(crew.asked.values()) <= CALLS * len(made) + cut
            stories = [await crew.story(run_id) for run_id in made]
            assert all(story == stories[0] for story in stories)
        finally:
            nursery.clear()
            crew.stop()
            await engine.dispose()


async def _begun(crew: Crew, run_id: UUID) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await crew.query("SELECT 1 FROM project_runs WHERE id = $1 AND lease_epoch > 0", run_id):
            await asyncio.sleep(0.02)


async def _until_refused(crew: Crew) -> None:
    """Write until the database says that there is no room, or is gone."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                await crew.query("CREATE TABLE IF NOT EXISTS ballast (a text)")
                await crew.query("INSERT INTO ballast SELECT repeat('x', 2000) FROM generate_series(1, 500)")
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                return


async def _patiently(crew: Crew, made: list[UUID]) -> None:
    """Wait for the ends through whatever the database does meanwhile."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                await crew.query("DROP TABLE IF EXISTS ballast")
                return await crew.ended(*made)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await asyncio.sleep(0.3)
