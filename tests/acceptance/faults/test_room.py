"""A worker takes a doorbell only when it has room for the run: what it has none for is heard by another worker."""

from __future__ import annotations

import asyncio

from redis.asyncio import Redis

from backend.settings import Settings
from backend.worker.bell import QUEUE, make_bell
from tests.acceptance.faults.conftest import Crew
from tests.acceptance.faults.nursery import Nursery
from tests.patience import PATIENCE

_OWNERS = "SELECT count(DISTINCT lease_owner) FROM project_runs WHERE status = 'RUNNING'"


async def test_a_doorbell_that_a_worker_has_no_room_for_is_left_to_another(
    crew: Crew, nursery: Nursery, settings: Settings, redis_url: str
) -> None:
    # Nobody rings a second time.
    one_each = crew.environment | {
        "COMPANY_ENGINE__CONCURRENCY": "1",
        "COMPANY_ENGINE__REAPER_SECONDS": "60",
        "COMPANY_ENGINE__LEASE_SECONDS": "60",
    }
    bell, redis = make_bell(settings), Redis.from_url(redis_url)
    crew.pace = 1.0
    made = [await crew.run() for _ in range(3)]
    nursery.start(one_each)
    for run_id in made:
        bell.ring(run_id)
    await _until(crew, _OWNERS, 1)
    assert await redis.llen(QUEUE) == len(made) - 1
    nursery.start(one_each)
    await _until(crew, _OWNERS, 2)
    assert await redis.llen(QUEUE) == len(made) - 2
    crew.pace = 0.02
    await crew.ended(*made)
    assert await redis.llen(QUEUE) == 0
    assert await crew.query("SELECT DISTINCT status, lease_epoch FROM project_runs") == [("COMPLETED", 1)]
    await crew.check()
    await bell.close()
    await redis.aclose()


async def _until(crew: Crew, count: str, wanted: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while (await crew.query(count))[0][0] < wanted:
            await asyncio.sleep(0.02)
