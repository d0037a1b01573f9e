"""Kills under limits in seconds: a month's time is never passed, and what was stopped by it goes on exactly there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from backend.adapters.db.engine import Sessions
from backend.domain.config import RunConfig
from backend.operations import budgets, runs
from backend.operations.ledger import CANCELLED
from tests.acceptance.faults import numbers
from tests.acceptance.faults.nursery import Nursery
from tests.acceptance.faults.test_crashes import CALLS
from tests.acceptance.faults.test_storms import WORKERS, Counting, Storm

STEP_SECONDS = 12
"""By so much the month's limit grows whenever it has stopped every run that is left."""
MONTH = "SELECT spent_seconds, reserved_seconds, limit_seconds FROM budgets WHERE scope = 'tenant_month'"


class Timed(Counting):
    """A crew of runs whose developers' calls and whose month are limited in seconds, with a model that takes its time.

    A call that is killed is charged what it held, so that a provider may not take long.
    """

    pace = 0.1
    limit = 0

    def config(self, **changes: Any) -> RunConfig:
        config = super().config(budget={"roles": {"developer": {"seconds": 10_000}}}, **changes)
        provider = config.models.providers["loopback"].model_copy(update={"timeout_seconds": 5})
        config.models.providers["loopback"] = provider
        return config

    async def raise_limit(self) -> None:
        """Give the month some more seconds."""
        self.limit += STEP_SECONDS
        async with self.sessions.begin() as session:
            await budgets.limit_month(session, budgets.Limits(seconds=self.limit))

    async def go_on(self) -> int:
        """Give the month more time, and retry every run that was stopped; says how many."""
        stopped = await self.query("SELECT id FROM project_runs WHERE status = 'STOPPED_BUDGET'")
        if stopped:
            await self.raise_limit()
        for (run_id,) in stopped:
            async with self.sessions.begin() as session:
                await runs.retry(session, run_id, by="test")
        return len(stopped)

    async def open_runs(self) -> int:
        """How many runs have neither ended nor been stopped."""
        found: int = (await self.query("SELECT count(*) FROM project_runs WHERE ended_at IS NULL"))[0][0]
        return found

    async def check_limit(self) -> None:
        """Raise when the month's limit is passed."""
        ((spent, reserved, limit),) = await self.query(MONTH)
        assert spent + reserved <= limit


@pytest.fixture
def timed(tmp_path: Path, database_url: str, redis_url: str, sessions: Sessions, make_run: Any) -> Iterator[Timed]:
    made = Timed(tmp_path, database_url, redis_url, sessions, make_run)
    with made.server:
        yield made
        made.stop()


@numbers.patience(20)
async def test_kills_under_a_limit_in_seconds_pass_nothing_and_lose_nothing(timed: Timed, nursery: Nursery) -> None:
    crew, wanted = timed, numbers.of(200)
    await crew.raise_limit()
    made: list[UUID] = [await crew.run() for _ in range(max(12, numbers.of(60)))]
    storm, stops = Storm(crew, nursery), 0
    for _ in range(WORKERS):
        storm.start()
    while True:
        await crew.check_limit()
        if await crew.open_runs():
            # A worker that is killed has used up what it held: more kills would leave nobody the time to end.
            await asyncio.sleep(0.3)
            if len(storm.killed) < wanted:
                await storm.strike()
        elif stopped := await crew.go_on():
            stops += stopped
        elif len(storm.killed) < wanted:
            made += [await crew.run() for _ in range(3)]
        else:
            break
    assert set(await crew.query("SELECT status FROM project_runs")) == {("COMPLETED",)}, crew.log()
    await crew.check()
    ((spent, reserved, limit),) = await crew.query(MONTH)
    counted = await crew.counted(CANCELLED)
    numbers.report(
        "kills under a limit in seconds",
        len(storm.killed),
        wanted,
        "kills",
        runs=len(made),
        stops_by_the_limit=stops,
        calls_cut=counted.cut,
        seconds_of_the_month=f"{spent:.1f} of {limit}",
    )
    assert reserved == 0
    assert 0 < spent <= limit
    assert stops > 0
    assert counted.settled == CALLS * len(made)
    stories = [await crew.story(run_id) for run_id in made]
    assert all(story == stories[0] for story in stories)
