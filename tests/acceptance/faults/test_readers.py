"""People who follow events over the api and drop off at random: nothing is missed or repeated, and all is in order."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from uuid import UUID

import httpx

from tests.acceptance.faults import numbers
from tests.acceptance.faults.conftest import Crew
from tests.acceptance.faults.desk import Desk
from tests.acceptance.faults.nursery import Nursery
from tests.patience import PATIENCE

WRITERS = 8
READERS = 20
OF_ALL = 5
"""So many readers follow everything, the others one run each."""
PATIENT = {"COMPANY_ENGINE__CONCURRENCY": "2", "COMPANY_ENGINE__LEASE_SECONDS": "20"}
"""Nobody dies here, and each of the writers is to have some runs."""
_WRITERS = "SELECT count(DISTINCT instance) FROM events WHERE source = 'engine'"
_TOLD = "SELECT run_id::text, seq FROM events WHERE run_id IS NOT NULL ORDER BY occurred_at, event_id"


class Reader:
    """Follows a run, or everything (None), and drops off again and again; keeps what it saw, in the order it came."""

    def __init__(self, desk: Desk, run_id: UUID | None, chance: random.Random) -> None:
        self._desk, self.run_id, self._chance = desk, run_id, chance
        self._path = f"/api/runs/{run_id}/events" if run_id is not None else "/api/events"
        self.seen: list[tuple[str, int]] = []
        self.dropped = 0
        self._last_id: str | None = None

    async def follow(self) -> None:
        """Read until cancelled, or until the run has ended and everything is read."""
        going_on = True
        while going_on:
            try:
                async with asyncio.timeout(self._chance.uniform(0.3, 6)):
                    going_on = await self._read(self._chance.randint(1, 40))
            except (TimeoutError, httpx.TransportError):
                pass
            self.dropped += going_on

    async def _read(self, patience: int) -> bool:
        """Read so many events; whether there may be more."""
        headers = {"Last-Event-ID": self._last_id} if self._last_id is not None else {}
        identity = ""
        async with self._desk.client.stream("GET", self._path, headers=headers) as answer:
            if answer.status_code == 204:
                return False
            assert answer.status_code == 200, answer.status_code
            async for line in answer.aiter_lines():
                if line.startswith("id: "):
                    identity = line.removeprefix("id: ")
                elif line.startswith("data: "):
                    event = json.loads(line.removeprefix("data: "))
                    self.seen.append((event["run_id"], event["seq"]))
                    self._last_id = identity
                    patience -= 1
                if patience == 0:
                    return True
        return True


async def test_who_drops_off_and_comes_again_misses_nothing_and_sees_nothing_twice(
    crew: Crew, nursery: Nursery
) -> None:
    wanted = numbers.of(1000)
    for _ in range(WRITERS):
        nursery.start(crew.environment | PATIENT)
    # Each run waits for a person in its middle, so that readers are there before its end.
    made = [await crew.run("a question") for _ in range(max(WRITERS, numbers.of(50)))]
    async with Desk(crew, nursery) as desk:
        some = [Reader(desk, made[place % len(made)], random.Random(place)) for place in range(READERS - OF_ALL)]
        everybody = [Reader(desk, None, random.Random(100 + place)) for place in range(OF_ALL)]
        following = [asyncio.create_task(reader.follow()) for reader in some + everybody]
        made += await _write(crew, desk, lambda: sum(reader.dropped for reader in some + everybody) >= wanted)
        await crew.ended(*made)
        told = await crew.query(_TOLD)
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*following[: len(some)])
            while any(len(reader.seen) < len(told) for reader in everybody):
                await asyncio.sleep(0.1)
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
    counts = {"writers": WRITERS, "readers": READERS, "events": len(told)}
    counts |= {"events read": sum(len(reader.seen) for reader in some + everybody)}
    numbers.report("readers", sum(reader.dropped for reader in some + everybody), wanted, "drops", **counts)
    for reader in some:
        assert reader.seen == [(run_id, seq) for run_id, seq in sorted(told) if run_id == str(reader.run_id)]
    assert all(reader.seen == told for reader in everybody)
    await crew.check()


async def _write(crew: Crew, desk: Desk, enough: Callable[[], bool]) -> list[UUID]:
    """Answer every question, a few at a time, and start more runs until each worker has written and `enough` is done.

    Returns the runs that it started.
    """
    more: list[UUID] = []
    async with asyncio.timeout(PATIENCE):
        while await crew.query("SELECT FROM project_runs WHERE ended_at IS NULL"):
            for (question,) in await crew.query("SELECT id FROM questions WHERE status = 'OPEN' LIMIT 2"):
                await desk.status("POST", f"/api/questions/{question}/answer", json={"answer": "blue"})
            left = await crew.query("SELECT count(*) FROM project_runs WHERE ended_at IS NULL")
            if left[0][0] < WRITERS // 2 and not (enough() and (await crew.query(_WRITERS))[0][0] >= WRITERS):
                more.append(await crew.run("a question"))
            await asyncio.sleep(0.2)
    return more
