"""Workers die at every named point, once and twice: the run ends the same, and no call is paid twice."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.acceptance.faults.conftest import Crew
from tests.acceptance.faults.nursery import Nursery

CALLS = 16
PARALLEL = 3
POINTS = (
    "claim",
    "reserve:3",
    "response:3",
    "booked:3",
    "writes:2",
    "transaction",
    "written:2",
    "checkpoint:2",
    "committed:2",
    "final",
)
"""After the claim; a call is reserved, answered, booked; before, in and after the commit of one of parallel tasks,
which lies between the writes and the checkpoint of its superstep; before and after that checkpoint; at the end."""

TWICE = ("claim", "reserve:3", "response:3")


async def test_a_run_is_driven_by_a_real_worker(crew: Crew) -> None:
    run_id = await crew.run()
    crew.start()
    await crew.ended(run_id)
    assert await crew.query("SELECT status FROM project_runs") == [("COMPLETED",)], crew.log()
    assert len(crew.server.requests) == CALLS
    await crew.check()


@pytest.mark.parametrize("point", POINTS)
async def test_a_worker_that_dies_at_a_named_point_loses_and_repeats_nothing(
    crew: Crew, nursery: Nursery, point: str
) -> None:
    run_id, deaths = await crew.run(), 0
    for _ in range(2 if point in TWICE else 1):
        await nursery.gone(nursery.start(crew.environment | {"COMPANY_ENGINE__CRASH_AT": point}), 60)
        deaths += 1
    nursery.start(crew.environment)
    await crew.ended(run_id)
    assert await crew.query("SELECT status FROM project_runs") == [("COMPLETED",)], crew.log()
    await crew.check()
    # Only calls that were in flight when a worker died may be asked again, and the ceiling of each is booked.
    cut = (await crew.query("SELECT count(*) FROM model_calls WHERE status = 'failed'"))[0][0]
    assert cut <= PARALLEL * deaths
    assert sum(crew.asked.values()) <= CALLS + cut
    twin = await crew.run()
    await crew.ended(twin)
    assert await crew.story(run_id) == await crew.story(twin)


async def test_a_worker_that_is_asked_to_leave_gives_its_runs_back(crew: Crew) -> None:
    run_id = await crew.run("hang")
    worker = crew.start()
    async with asyncio.timeout(60):
        while len(crew.server.requests) < 2:
            await asyncio.sleep(0.05)
    worker.send_signal(signal.SIGTERM)
    await crew.died(worker, 30)
    assert worker.returncode == 0, crew.log()
    assert await crew.query("SELECT status, lease_owner FROM project_runs") == [("RUNNING", None)]
    await crew.query("UPDATE project_runs SET brief = 'go'")
    await crew.query("UPDATE project_runs SET requested = 'stop'")
    crew.start()
    await crew.ended(run_id)
    assert await crew.query("SELECT status FROM project_runs") == [("STOPPED_USER",)]
    await crew.check()


async def test_a_wiped_broker_costs_a_delay_and_nothing_else(crew: Crew, redis_url: str) -> None:
    import redis

    client = redis.Redis.from_url(redis_url)
    runs = [await crew.run() for _ in range(3)]
    crew.start()
    for _ in range(10):
        client.flushdb()
        await asyncio.sleep(0.3)
    client.close()
    await crew.ended(*runs)
    assert len(crew.server.requests) == CALLS * len(runs)
    await crew.check()


async def test_a_frozen_worker_that_wakes_up_writes_nothing(crew: Crew) -> None:
    run_id = await crew.run()
    zombie = crew.start()
    async with asyncio.timeout(60):
        while len(crew.server.requests) < 3:
            await asyncio.sleep(0.01)
    zombie.send_signal(signal.SIGSTOP)
    crew.start()
    await crew.ended(run_id)
    before = await crew.query("SELECT event_seq, lease_epoch FROM project_runs")
    zombie.send_signal(signal.SIGCONT)
    await asyncio.sleep(3)
    assert zombie.poll() is None
    assert await crew.query("SELECT event_seq, lease_epoch FROM project_runs") == before
    await crew.check()
