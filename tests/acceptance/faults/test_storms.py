"""Many faults at once: kills, rolling restarts and people who all steer the same runs."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from uuid import UUID

from backend.adapters.db.engine import transaction
from backend.errors import Conflict
from backend.operations import runs
from tests.acceptance.faults import numbers
from tests.acceptance.faults.conftest import Crew
from tests.acceptance.faults.nursery import Nursery
from tests.acceptance.faults.test_crashes import CALLS
from tests.integration.engine.conftest import RecordingBell

WORKERS = 4


async def _busy(crew: Crew) -> set[int]:
    """The process ids of the workers that hold a run."""
    rows = await crew.query(
        "SELECT split_part(lease_owner, '/', 2) FROM project_runs WHERE status = 'RUNNING' AND lease_owner IS NOT NULL"
    )
    return {int(row[0]) for row in rows}


async def _never_idle(crew: Crew) -> list[UUID]:
    """Start runs where few are left: a fault that hits nobody who works proves nothing."""
    open_runs = await crew.query("SELECT count(*) FROM project_runs WHERE ended_at IS NULL")
    return [await crew.run() for _ in range(3)] if open_runs[0][0] < 6 else []


async def test_a_storm_of_kills_loses_and_repeats_nothing(crew: Crew, nursery: Nursery) -> None:
    wanted, most = numbers.of(1000), numbers.of(200)
    made: list[UUID] = []
    killed, hit, chance = 0, 0, random.Random(7)
    for _ in range(WORKERS):
        nursery.start(crew.environment)
    while killed < wanted:
        made += await _never_idle(crew)
        await asyncio.sleep(chance.uniform(0.05, 0.3))
        busy = [pid for pid in nursery.alive if pid in await _busy(crew)]
        # Every other kill may hit anybody, a worker that is just starting as well.
        if not busy and killed % 2:
            continue
        hit += bool(busy)
        nursery.kill(chance.choice(busy or nursery.alive))
        nursery.start(crew.environment)
        killed += 1
    made += [await crew.run() for _ in range(max(0, most - len(made)))]
    await crew.ended(*made, seconds=240)
    numbers.report("kill storm", killed, wanted, "kills", of_busy_workers=hit, runs=len(made))
    assert killed >= wanted
    assert hit >= wanted // 2
    assert len(made) >= most
    assert set(await crew.query("SELECT status FROM project_runs")) == {("COMPLETED",)}, crew.log()
    await crew.check()
    again = await crew.query("SELECT count(*) FROM model_calls WHERE status = 'failed'")
    assert sum(crew.asked.values()) <= CALLS * len(made) + again[0][0]
    stories = [await crew.story(run_id) for run_id in made]
    assert all(story == stories[0] for story in stories)


async def test_a_rolling_restart_repeats_nothing(crew: Crew, nursery: Nursery) -> None:
    wanted = numbers.of(100)
    # A lease that runs out on a busy machine, or a node that is cut, repeats a call as it should: not asked here.
    patient = crew.environment | {"COMPANY_ENGINE__LEASE_SECONDS": "30", "COMPANY_ENGINE__SHUTDOWN_SECONDS": "15"}
    made = [await crew.run() for _ in range(wanted)]
    first = [nursery.start(patient) for _ in range(2)]
    drained = 0
    async with asyncio.timeout(120):
        for pid in first:
            while pid not in await _busy(crew):
                made += await _never_idle(crew)
                await asyncio.sleep(0.02)
            nursery.start(patient)
            os.kill(pid, signal.SIGTERM)
            await nursery.gone(pid, 30)
            drained += 1
    await crew.ended(*made, seconds=120)
    numbers.report("drain", len(made), wanted, "runs", workers_restarted=drained)
    assert drained == len(first)
    assert set(await crew.query("SELECT status FROM project_runs")) == {("COMPLETED",)}, crew.log()
    assert sum(crew.asked.values()) == CALLS * len(made)
    assert await crew.query("SELECT 1 FROM model_calls WHERE status <> 'done'") == []
    await crew.check()


async def test_people_who_steer_at_once_make_no_illegal_move(crew: Crew, nursery: Nursery) -> None:
    for _ in range(2):
        nursery.start(crew.environment)
    bell, told, chance = RecordingBell(), Counter[str](), random.Random(3)
    made = [await crew.run() for _ in range(numbers.of(50))]
    gate = asyncio.Semaphore(12)

    async def steer(run_id: UUID, verb: str) -> None:
        async with gate:
            try:
                async with transaction(crew.sessions, bell) as session:
                    await getattr(runs, verb)(session, run_id, by="ada")
                told["done"] += 1
            except Conflict:
                told["refused"] += 1

    verbs = [(run_id, chance.choice(("pause", "resume", "stop", "retry"))) for run_id in made for _ in range(200)]
    chance.shuffle(verbs)
    await asyncio.gather(*(steer(*verb) for verb in verbs))
    raced, told = told, Counter[str]()
    for run_id in made:
        await steer(run_id, "resume")
        await steer(run_id, "retry")
    await crew.ended(*made)
    counts = {"obeyed": raced["done"], "refused": raced["refused"], "runs": len(made)}
    numbers.report("control races", len(verbs), 200 * numbers.of(50), "calls", **counts, retried_after=told["done"])
    assert sum(raced.values()) == len(verbs)
    assert sum(told.values()) == 2 * len(made)
    ends = set(await crew.query("SELECT status FROM project_runs"))
    assert ends <= {("COMPLETED",), ("STOPPED_USER",)}, crew.log()
    await crew.check()
