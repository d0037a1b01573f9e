"""Runs that are asked for at the same time are taken together; none waits for another one's row."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from backend.engine.taking import Taker
from backend.operations import questions
from tests.integration.engine.conftest import Company


class Counted:
    """A pool that counts statements by the number of runs they ask for, and may refuse the first ones."""

    def __init__(self, pool: Any, *refusals: Exception) -> None:
        self._pool, self._refusals = pool, list(refusals)
        self.asked: list[int] = []

    async def fetch(self, text: str, *args: Any) -> Any:
        self.asked.append(len(args[0]))
        if self._refusals:
            raise self._refusals.pop(0)
        return await self._pool.fetch(text, *args)

    async def fetchrow(self, text: str, *args: Any) -> Any:
        self.asked.append(1)
        return await self._pool.fetchrow(text, *args)


def taker(company: Company, pool: Any = None, owner: str = "test/one", most: int = 3) -> Taker:
    pins = company.executor.library.pins
    return Taker(pool or company.pool, owner=owner, lease_seconds=60.0, most=most, pins=pins)


async def waiting(company: Company, count: int) -> list[UUID]:
    return [await company.run() for _ in range(count)]


async def owners(company: Company) -> Mapping[UUID, tuple[str, int]]:
    rows = await company.pool.fetch("SELECT id, lease_owner, lease_epoch FROM project_runs")
    return {row["id"]: (row["lease_owner"], row["lease_epoch"]) for row in rows}


async def test_what_is_asked_for_while_a_statement_is_on_its_way_goes_with_the_next(company: Company) -> None:
    runs = await waiting(company, 30)
    counted = Counted(company.pool)
    one = taker(company, counted)
    rows = await asyncio.gather(*(one.take(run_id) for run_id in runs))
    assert counted.asked == [1, 24, 5]
    assert all(row is not None and row["lease_epoch"] == 1 and row["first"] for row in rows)
    assert await owners(company) == dict.fromkeys(runs, ("test/one", 1))
    told = await company.pool.fetch("SELECT run_id, seq, type FROM events WHERE type = 'run.started'")
    assert sorted(told) == sorted((run_id, 1, "run.started") for run_id in runs)


async def test_two_takers_of_the_same_runs_get_each_run_once(company: Company) -> None:
    runs = await waiting(company, 24)
    takers = [taker(company, owner=f"test/{n}") for n in range(4)]
    asked = [(one, run_id) for one in takers for run_id in runs]
    rows = await asyncio.gather(*(one.take(run_id) for one, run_id in asked))
    had = Counter(run_id for (_, run_id), row in zip(asked, rows, strict=True) if row is not None)
    assert had == dict.fromkeys(runs, 1)
    assert {epoch for _, epoch in (await owners(company)).values()} == {1}


async def test_a_run_that_is_asked_for_twice_at_once_is_had_once(company: Company) -> None:
    run_id = await company.run()
    one = taker(company)
    rows = await asyncio.gather(one.take(run_id), one.take(run_id))
    assert sorted(row is None for row in rows) == [False, True]


@pytest.mark.parametrize("table", ["project_runs", "projects"])
async def test_nobody_waits_for_a_row_that_somebody_holds_but_its_own_run(company: Company, table: str) -> None:
    runs = await waiting(company, 5)
    held = runs[2]
    column = "id" if table == "project_runs" else "active_run_id"
    one = taker(company)
    async with company.pool.acquire() as connection:
        holding = connection.transaction()
        await holding.start()
        await connection.execute(f"SELECT FROM {table} WHERE {column} = $1 FOR NO KEY UPDATE", held)  # noqa: S608 - ours
        taking = {run_id: asyncio.create_task(one.take(run_id)) for run_id in runs}
        rows = await asyncio.gather(*(task for run_id, task in taking.items() if run_id != held))
        assert all(row is not None for row in rows)
        await company.waits_for_a_lock()
        assert not taking[held].done()
        await holding.rollback()
    row = await taking[held]
    assert row is not None
    assert (row["lease_epoch"], row["answers"]) == (1, None)


async def test_what_is_not_to_be_had_is_left_as_it_is(company: Company) -> None:
    ended, often, paused, free = await waiting(company, 4)
    changes = {ended: "status = 'STOPPED_USER', ended_at = clock_timestamp()", often: "claims = 3"}
    changes |= {paused: "status = 'PAUSED', lease_owner = NULL"}
    await company.pool.execute("UPDATE project_runs SET status = 'RUNNING' WHERE id = $1", paused)
    for run_id, change in changes.items():
        await company.pool.execute(f"UPDATE project_runs SET {change} WHERE id = $1", run_id)  # noqa: S608 - ours
    one = taker(company)
    rows = await asyncio.gather(*(one.take(run_id) for run_id in (ended, often, paused, free, uuid4())))
    assert [row is not None for row in rows] == [False, False, False, True, False]
    assert sorted(epoch for _, epoch in (await owners(company)).values()) == [0, 0, 0, 1]


async def test_a_run_with_a_past_comes_with_what_was_answered_meanwhile(company: Company) -> None:
    run_id = await company.run("a question")
    await company.executor.execute(run_id)
    question = await company.pool.fetchrow("SELECT id, key FROM questions WHERE run_id = $1", run_id)
    await company.operate(questions.answer, question["id"], "blue", by="ada")
    counted = Counted(company.pool)
    fresh = await company.run()
    one = taker(company, counted)
    _, begun, new = await asyncio.gather(one.take(await company.run()), one.take(run_id), one.take(fresh))
    assert counted.asked == [1, 2]
    assert begun is not None
    assert new is not None
    assert (json.loads(begun["answers"]), begun["asks"], begun["held"]) == (
        {question["key"]: ["blue", "ada"]},
        False,
        False,
    )
    assert (new["answers"], new["asks"], new["held"]) == (None, None, None)


async def test_where_one_statement_is_refused_each_run_is_tried_by_itself(company: Company) -> None:
    runs = await waiting(company, 4)
    counted = Counted(company.pool, asyncpg.DataError("refused"))
    one = taker(company, counted)
    rows = await asyncio.gather(*(one.take(run_id) for run_id in runs))
    assert all(row is not None for row in rows)
    assert counted.asked == [1, 3, 1, 1, 1]


@pytest.mark.parametrize("failure", [ConnectionResetError("gone"), TimeoutError("silent"), KeyError("a bug")])
async def test_nobody_is_left_waiting_by_a_statement_that_fails(company: Company, failure: Exception) -> None:
    runs = await waiting(company, 30)
    one = taker(company, Counted(company.pool, failure))
    rows = await asyncio.gather(*(one.take(run_id) for run_id in runs), return_exceptions=True)
    lost = [row for row in rows if isinstance(row, BaseException)]
    assert len(lost) == (0 if isinstance(failure, KeyError) else 24)
    assert all(error is failure for error in lost)
    assert all(row is not None for row in rows)
