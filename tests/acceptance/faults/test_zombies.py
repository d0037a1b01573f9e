"""Workers that are frozen beyond their leases and wake up again, and doorbells by the dozen: one owner each time."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from uuid import UUID

from backend.settings import Settings
from backend.worker.bell import make_bell
from tests.acceptance.faults import numbers
from tests.acceptance.faults.conftest import Crew
from tests.acceptance.faults.nursery import Nursery
from tests.acceptance.faults.test_crashes import CALLS

TOGETHER = 4
FROZEN_SECONDS = 6.0
"""Beyond the lease of two seconds, and beyond the silence after which the server ends a transaction."""
BELLS = 50
SILENT = (
    "SELECT pid, query FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'"
    " AND state_change < clock_timestamp() - interval '4 seconds'"
)
"""Transactions that wait for their client for twice the lease of these tests."""


async def _freeze_some(crew: Crew, nursery: Nursery, chance: random.Random) -> tuple[list[int], int]:
    """Freeze some workers, those first that hold a run; returns who, and how many of them hold one."""
    holding = await crew.busy()
    busy = [pid for pid in nursery.alive if pid in holding]
    rest = [pid for pid in nursery.alive if pid not in busy]
    victims = (chance.sample(busy, min(TOGETHER, len(busy))) + chance.sample(rest, len(rest)))[:TOGETHER]
    for pid in victims:
        os.kill(pid, signal.SIGSTOP)
    held = await crew.busy()
    return victims, sum(pid in held for pid in victims)


@numbers.patience(25)
async def test_workers_that_are_frozen_four_at_once_write_nothing_when_they_wake_up(
    crew: Crew, nursery: Nursery
) -> None:
    wanted, chance = numbers.of(200), random.Random(5)
    made: list[UUID] = []
    for _ in range(2 * TOGETHER):
        nursery.start(crew.environment)
    frozen, hit, silent = 0, 0, []
    while hit < wanted:
        made += await crew.never_idle(2 * TOGETHER)
        await asyncio.sleep(chance.uniform(0.05, 0.3))
        victims, holding = await _freeze_some(crew, nursery, chance)
        for _ in range(12):
            await asyncio.sleep(FROZEN_SECONDS / 12)
            made += await crew.never_idle(2 * TOGETHER)
        silent += await crew.query(SILENT)
        for pid in victims:
            os.kill(pid, signal.SIGCONT)
        frozen, hit = frozen + len(victims), hit + holding
    await crew.ended(*made)
    lost = (await crew.query("SELECT count(*) FROM events WHERE type = 'run.lease_lost'"))[0][0]
    again = (await crew.query("SELECT count(*) FROM model_calls WHERE status = 'failed'"))[0][0]
    counts = {"freezes in all": frozen, "takeovers": lost, "calls cut": again, "runs": len(made)}
    numbers.report("zombies", hit, wanted, "freezes with a run", **counts)
    assert silent == [], "a frozen worker keeps its locks"
    assert lost >= hit // 2
    assert set(await crew.query("SELECT status FROM project_runs")) == {("COMPLETED",)}, crew.log()
    await crew.check()
    assert sum(crew.asked.values()) <= CALLS * len(made) + again
    stories = [await crew.story(run_id) for run_id in made]
    assert all(story == stories[0] for story in stories)
    assert all(os.path.exists(f"/proc/{pid}") for pid in nursery.alive)


async def test_fifty_doorbells_at_once_give_a_run_one_owner(crew: Crew, nursery: Nursery, settings: Settings) -> None:
    # A busy machine may hold a worker up for seconds: that must cost it no lease here.
    patient = crew.environment | {"COMPANY_ENGINE__LEASE_SECONDS": "60"}
    for _ in range(TOGETHER):
        nursery.start(patient)
    first = await crew.run()
    await crew.ended(first)
    bell = make_bell(settings)
    run_id = await crew.run()
    for _ in range(BELLS):
        bell.ring(run_id)
    await crew.ended(run_id)
    await bell.close()
    numbers.report("doorbells", BELLS, BELLS, "at once", owners=(await crew.query(_OWNERS, run_id))[0][0])
    assert await crew.query(_OWNERS, run_id) == [(1,)]
    assert await crew.query("SELECT lease_epoch FROM project_runs WHERE id = $1", run_id) == [(1,)]
    assert sum(crew.asked.values()) == 2 * CALLS
    await crew.check()


_OWNERS = "SELECT count(*) FROM events WHERE run_id = $1 AND type IN ('run.started', 'run.resumed')"
