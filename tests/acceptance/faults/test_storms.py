"""Many faults at once: kills of workers whose clocks are off, counted to the request, and rolling restarts."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from backend.adapters.db.engine import Sessions
from backend.domain.config import RunConfig
from backend.operations import costs
from backend.operations.ledger import GONE, LOST
from tests.acceptance.faults import numbers
from tests.acceptance.faults.conftest import Crew
from tests.acceptance.faults.nursery import Nursery
from tests.acceptance.faults.test_crashes import CALLS
from tests.openai_server import Reply, json_body, position_of
from tests.openai_server.replies import completion
from tests.patience import PATIENCE

WORKERS = 8 if numbers.FULL else 4
KILLS_A_RUN = 5
OPEN_RUNS = max(12, numbers.of(40))
"""So many runs are on their way at once: each kill takes some of them down, and they wait for their leases to end."""


class Counting(Crew):
    """A crew whose model endpoint numbers its answers and knows for which run each was asked.

    The number travels in the model's name, as providers name the exact version that answered: the journal keeps it.
    """

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.served: list[Place] = []

    def config(self, **changes: Any) -> RunConfig:
        config = super().config(**changes)
        address = f"http://127.0.0.1:{self.server.port}/{uuid4().hex}/v1"
        config.models.providers["loopback"] = config.models.providers["loopback"].model_copy(
            update={"base_url": address}
        )
        return config

    def _answer(self, request: dict[str, Any]) -> Reply:
        reply, received = super()._answer(request), self.server.requests[-1]
        said = position_of(received.headers)
        assert said is not None
        self.served.append((received.path.split("/")[1], said[1], said[3], said[4]))
        body = completion(reply, f"scripted-{len(self.served)}")
        return json_body(body).after(reply.delay)

    async def counted(self, *because: str) -> Counted:
        """Compare every request that came in with what the journal says; raises where one was made again.

        `because`: for what else than a kill a call may have been cut, as its row says it.
        """
        rows = await self.query(_JOURNAL)
        done: dict[Place, int] = {}
        lost: Counter[Place] = Counter()
        for *place, status, model, error in rows:
            where: Place = tuple(place)  # type: ignore[assignment]  # four columns
            if status == "done":
                assert where not in done, f"{where} has two answers"
                done[where] = int(model.rpartition("-")[2])
            else:
                assert status == "failed"
                assert error in {LOST, *because}
                lost[where] += 1
        asked: dict[Place, list[int]] = {}
        for number, where in enumerate(self.served, 1):
            asked.setdefault(where, []).append(number)
        for where, listed in asked.items():
            assert listed[-1] == done[where], f"{where} was asked again after its answer was booked"
            assert len(listed) <= 1 + lost[where], f"{where} was asked again without a kill"
        assert set(asked) == set(done)
        cut = sum(len(listed) - 1 for listed in asked.values())
        assert len(self.served) == len(done) + cut
        return Counted(len(self.served), len(done), cut, lost.total() - cut)


Place = tuple[str, str, int, int]
"""The run's address, node, visit, ordinal."""
_JOURNAL = (
    "SELECT split_part(r.config_snapshot #>> '{models,providers,loopback,base_url}', '/', 4), c.node, c.visit,"
    " c.ordinal, c.status, c.response ->> 'model', c.error FROM model_calls c JOIN project_runs r ON r.id = c.run_id"
    " WHERE c.status <> 'released' ORDER BY c.run_id, c.node, c.visit, c.ordinal, c.attempt"
)


@dataclass(frozen=True)
class Counted:
    """Requests = settled + cut; `unsent` calls were reserved when their worker died, and never asked."""

    requests: int
    settled: int
    cut: int
    unsent: int


@pytest.fixture
def counting(
    tmp_path: Path, database_url: str, redis_url: str, sessions: Sessions, make_run: Any
) -> Iterator[Counting]:
    made = Counting(tmp_path, database_url, redis_url, sessions, make_run)
    with made.server:
        yield made
        made.stop()


CLOCKS = ("3600", "-3600", "0")
_UUID_EPOCH = 0x01B21DD213814000
_CHECKPOINTS = "SELECT checkpoint_id, extract(epoch FROM created_at)::float FROM checkpoints"
_INSTANTS = (
    "SELECT t, c, extract(epoch FROM min(i) - $1)::float, extract(epoch FROM max(i) - clock_timestamp())::float FROM ("
    " SELECT 'events' AS t, 'occurred_at' AS c, occurred_at AS i FROM events"
    " UNION ALL SELECT 'model_calls', 'settled_at', settled_at FROM model_calls"
    " UNION ALL SELECT 'checkpoints', 'created_at', created_at FROM checkpoints"
    " UNION ALL SELECT 'task_comments', 'created_at', created_at FROM task_comments"
    " UNION ALL SELECT 'project_runs', 'ended_at', ended_at FROM project_runs) AS told GROUP BY 1, 2"
)


def _written_at(checkpoint_id: UUID) -> float:
    """The instant in an id of LangGraph (a UUID of version 6), by the clock of the worker that made it."""
    value = checkpoint_id.int
    ticks = (value >> 96) << 28 | (value >> 80 & 0xFFFF) << 12 | value >> 64 & 0xFFF
    return (ticks - _UUID_EPOCH) / 10_000_000


class Storm:
    """Kills workers at random and starts others, whose clocks are off; knows who was killed when."""

    def __init__(self, crew: Crew, nursery: Nursery) -> None:
        self._crew, self._nursery = crew, nursery
        self._chance, self._clocks = random.Random(7), itertools.cycle(CLOCKS)
        self.killed: dict[int, float] = {}
        self.hit = 0

    def start(self) -> None:
        """Start a worker with the next clock."""
        self._nursery.start(self._crew.environment | {"NURSERY_CLOCK_SECONDS": next(self._clocks)})

    async def strike(self) -> None:
        """Kill one of those that hold a run; every other time it may be anybody, a worker that just starts as well."""
        await asyncio.sleep(self._chance.uniform(0.02, 0.2))
        holding = await self._crew.busy()
        busy = [pid for pid in self._nursery.alive if pid in holding]
        if not busy and len(self.killed) % 2:
            return
        self.hit += bool(busy)
        victim = self._chance.choice(busy or self._nursery.alive)
        self._nursery.kill(victim)
        self.killed[victim] = time.time()
        self.start()

    async def recoveries(self) -> list[float]:
        """Seconds from each kill to the next claim of each run that its worker held, shortest first."""
        found = await self._crew.query(_TAKEN_OVER)
        return sorted(at - self.killed[int(pid)] for pid, at in found if int(pid) in self.killed)


_TAKEN_OVER = (
    "SELECT split_part(payload ->> 'owner', '/', 2), extract(epoch FROM occurred_at)::float FROM events"
    " WHERE type = 'run.lease_lost' AND payload ->> 'owner' IS NOT NULL"
)


@numbers.patience(40)
async def test_a_storm_of_kills_of_workers_whose_clocks_are_off_loses_and_repeats_nothing(
    counting: Counting, nursery: Nursery
) -> None:
    crew, wanted, most = counting, numbers.of(1000), numbers.of(200)
    began = (await crew.query("SELECT clock_timestamp()"))[0][0]
    made: list[UUID] = []
    storm = Storm(crew, nursery)
    # Who takes a run up in the storm is chance: each clock drives one alone first.
    for _ in CLOCKS:
        storm.start()
        made.append(await crew.run())
        await crew.ended(made[-1])
        nursery.kill(nursery.alive[-1])
    for _ in range(WORKERS):
        storm.start()
    while len(storm.killed) < wanted or storm.hit < wanted // 2:
        made += await crew.never_idle(OPEN_RUNS)
        # All of the runs are to be hit, not a few of them again and again that never come to their ends.
        if len(storm.killed) < KILLS_A_RUN * (len(made) - OPEN_RUNS):
            await storm.strike()
        else:
            await asyncio.sleep(0.05)
    await crew.ended(*made)
    assert set(await crew.query("SELECT status FROM project_runs")) == {("COMPLETED",)}, crew.log()
    await crew.check()
    took = await storm.recoveries()
    counts = {"of busy workers": storm.hit, "runs": len(made), "takeovers": len(took)}
    counts |= {
        "calls cut": (await crew.counted()).cut,
        "seconds until p99 were taken over": round(took[-len(took) // 100], 1),
    }
    numbers.report("kill storm", len(storm.killed), wanted, "kills", **counts)
    assert len(made) >= most
    stories = [await crew.story(run_id) for run_id in made]
    assert all(story == stories[0] for story in stories)
    await _report_counts(crew, made, len(storm.killed))
    await _report_clocks(crew, began)


async def _report_counts(crew: Counting, made: list[UUID], killed: int) -> None:
    counted = await crew.counted()
    async with crew.sessions() as session:
        saved = [await costs.saved(session, run_id) for run_id in made]
    told = {"settled": counted.settled, "cut by a kill": counted.cut, "reserved and never sent": counted.unsent}
    told["calls saved by the journal"] = calls = sum(one["calls"] for one in saved)
    told["tokens saved"], told["USD saved"] = sum(one["tokens"] for one in saved), sum(Decimal(o["usd"]) for o in saved)
    numbers.report("exact counting", counted.requests, CALLS * len(made), "requests", **told)
    assert counted.settled == CALLS * len(made)
    assert calls <= counted.settled
    # Where a kill falls is chance; that one after a reply saves the call is shown at the point `booked`.
    assert calls > 0 or killed < 1000, f"{killed} kills, and the journal saved nothing"


async def _report_clocks(crew: Crew, began: datetime) -> None:
    off = [_written_at(found) - at for found, at in await crew.query(_CHECKPOINTS)]
    fast, slow = sum(seconds > 1800 for seconds in off), sum(seconds < -1800 for seconds in off)
    numbers.report("clock off by an hour", fast + slow, 2, "checkpoints", an_hour_fast=fast, an_hour_slow=slow)
    assert fast > 0
    assert slow > 0
    for table, column, first, last in await crew.query(_INSTANTS, began):
        assert first >= 0 and last <= 0, f"{table}.{column} follows a worker's clock: {first}, {last}"


@numbers.patience(10)
async def test_a_rolling_restart_repeats_nothing(crew: Crew, nursery: Nursery) -> None:
    wanted, restarts = numbers.of(100), max(2, numbers.of(20))
    # A lease that runs out on a busy machine, or a node that is cut, repeats a call as it should: not asked here.
    patient = crew.environment | {"COMPANY_ENGINE__LEASE_SECONDS": "30", "COMPANY_ENGINE__SHUTDOWN_SECONDS": "15"}
    made = [await crew.run() for _ in range(wanted)]
    working = deque(nursery.start(patient) for _ in range(2))
    took: list[float] = []
    async with asyncio.timeout(PATIENCE):
        while len(took) < restarts:
            leaving = working.popleft()
            while leaving not in await crew.busy():
                made += await crew.never_idle()
                await asyncio.sleep(0.02)
            working.append(nursery.start(patient))
            os.kill(leaving, signal.SIGTERM)
            began = time.monotonic()
            await nursery.gone(leaving)
            took.append(time.monotonic() - began)
    await crew.ended(*made)
    # Where one of parallel tasks holds, a call of another may be reserved at that moment: it is given back, not sent.
    others = Counter(await crew.query("SELECT status, error FROM model_calls WHERE status <> 'done'"))
    counts = {"workers restarted": len(took), "longest seconds to leave": round(max(took), 1)}
    counts["calls given back unsent"] = others.total()
    numbers.report("drain", len(made), wanted, "runs", **counts)
    assert set(await crew.query("SELECT status FROM project_runs")) == {("COMPLETED",)}, crew.log()
    assert sum(crew.asked.values()) == CALLS * len(made)
    assert set(others) <= {("released", GONE)}
    await crew.check()
