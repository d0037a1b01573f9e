"""A run is cut at every statement that drives it, on its way there or back: nothing is lost, nothing is doubled."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from uuid import UUID

import pytest

from backend.errors import Conflict
from backend.operations import runs
from tests.acceptance.faults import numbers
from tests.acceptance.faults.test_crashes import CALLS
from tests.integration.engine.conftest import Company, company

__all__ = ["company"]

ASKED: dict[str, Callable[..., Awaitable[Any]]] = {
    "pause": runs.pause,
    "pause_now": partial(runs.pause, at_once=True),
    "stop": runs.stop,
}
"""What people ask of a run, by the reason for which its worker then holds."""
WAYS = ("pause", "pause_now", "stop", "shutdown", "seconds", "lost")
CASES = [pytest.param(way, 0.0, id=way) for way in WAYS]
CASES += [pytest.param(way, 0.03, id=f"{way}, thinking") for way in ("pause_now", "stop", "shutdown")]
MOMENT = 0.05
"""Seconds for which the statement is held: whoever is to be cut is cut meanwhile."""
GO_ON = {"PAUSED": runs.resume, "STOPPED_USER": runs.retry, "STOPPED_BUDGET": runs.retry}
_FAILED = "SELECT count(*) FROM model_calls WHERE run_id = $1 AND status = 'failed'"


class Held:
    """A pool, or a connection of it, that tells of each statement before it is sent and before its answer is heard."""

    def __init__(self, real: Any, tell: Callable[[], Awaitable[None]]) -> None:
        self._real, self._tell = real, tell

    async def fetch(self, *asked: Any) -> Any:
        """Ask for rows."""
        return await self._ask(self._real.fetch, *asked)

    async def fetchrow(self, *asked: Any) -> Any:
        """Ask for a row."""
        return await self._ask(self._real.fetchrow, *asked)

    async def execute(self, *asked: Any) -> Any:
        """Ask for nothing."""
        return await self._ask(self._real.execute, *asked)

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Held]:
        """Take a connection."""
        async with self._real.acquire() as connection:
            yield Held(connection, self._tell)

    async def _ask(self, send: Callable[..., Awaitable[Any]], *asked: Any) -> Any:
        await self._tell()
        answer = await send(*asked)
        await self._tell()
        return answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class Scissors:
    """A worker whose run is cut in one of the `WAYS` at one place, counted from 1; at 0 it is left alone."""

    def __init__(self, company: Company, run_id: UUID, way: str, place: int) -> None:
        self._company, self._run_id, self._way, self._place = company, run_id, way, place
        self.places = 0
        self._worker = company.worker("cut", shutdown_seconds=0.01)
        self._worker.pool = Held(company.pool, self._come_by)
        self._others: list[asyncio.Task[Any]] = []

    async def drive(self) -> None:
        """Drive the run until it lets go, and wait for whoever took part."""
        await self._worker.execute(self._run_id)
        for end in await asyncio.gather(*self._others, return_exceptions=True):
            assert end is None or isinstance(end, Conflict), end

    async def _come_by(self) -> None:
        self.places += 1
        if self.places != self._place:
            return
        if self._way == "lost":
            await self._company.let_lease_end(self._run_id)
            self._others.append(asyncio.create_task(self._company.executor.execute(self._run_id)))
            await asyncio.wait(self._others, timeout=10 * MOMENT)
            return
        if self._way in ASKED:
            self._others.append(asyncio.create_task(self._ask()))
            # In a transaction the run's row is locked: then it is written down later.
            await asyncio.wait(self._others, timeout=5 * MOMENT)
        self._worker.hold_all(self._way)
        await asyncio.sleep(MOMENT)

    async def _ask(self) -> None:
        await self._company.operate(ASKED[self._way], self._run_id, by="ada")


async def _to_its_end(company: Company, run_id: UUID) -> None:
    """Let another worker go on with a run that was cut, as often as people have to let it."""
    for _ in range(10):
        status = (await company.row(run_id))["status"]
        if status == "COMPLETED":
            return
        if status in GO_ON:
            await company.check(run_id)
            await company.operate(GO_ON[status], run_id, by="ada")
        await company.executor.execute(run_id)
    raise AssertionError(f"the run does not come to its end: {dict(await company.row(run_id))}")


@numbers.patience(20)
@pytest.mark.parametrize(("way", "thinking"), CASES)
async def test_a_run_that_is_cut_at_any_statement_pays_once_and_comes_to_the_same_end(
    company: Company, way: str, thinking: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = await company.run()
    alone = Scissors(company, calm, way, 0)
    await alone.drive()
    story = await company.story(calm)
    send = company.transport.send

    async def think(*asked: Any, **named: Any) -> Any:
        reply = await send(*asked, **named)
        await asyncio.sleep(thinking)
        return reply

    monkeypatch.setattr(company.transport, "send", think)
    reached = cut = 0
    for place in random.Random(way).sample(range(1, alone.places + 1), numbers.of(alone.places)):
        company.transport.calls.clear()
        run_id = await company.run(budget={"seconds": 100_000})
        scissors = Scissors(company, run_id, way, place)
        await scissors.drive()
        # Commits that meet share a statement: a run may come to its end some places earlier than another.
        reached += scissors.places >= place
        await _to_its_end(company, run_id)
        await company.check(run_id)
        failed = await company.pool.fetchval(_FAILED, run_id)
        # What a worker that lost its run had reserved counts as sent: nobody else can know.
        again = len(company.transport.calls) - CALLS
        assert 0 <= again <= failed if way == "lost" else again == failed, f"at place {place}"
        assert failed == 0 or thinking or way == "lost", f"at place {place} a call was cut that was answered already"
        if failed == 0:
            assert await company.story(run_id) == story, f"at place {place}"
        cut += failed
    named = f"cut by: {way}{', thinking' if thinking else ''}"
    numbers.report(named, reached, numbers.of(100), "places", places_in_all=alone.places, calls_cut=cut)
