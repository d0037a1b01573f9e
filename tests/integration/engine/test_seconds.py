"""Limits in seconds of a role, a project and a month: held before they are used, booked once, never passed."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any
from uuid import UUID

import pytest

from backend.adapters.db import grants
from backend.adapters.db.checkpointer import LeaseLost
from backend.adapters.db.checkpointer.sending import fetch
from backend.adapters.db.commit import Fence
from backend.domain.budget import BudgetReached, Limit
from backend.domain.model import ModelReply, ModelRequest
from backend.domain.ports import Visit
from backend.domain.role import Role
from backend.engine import claims, journal, worktime
from backend.engine.journal import Books, Journal
from backend.engine.leases import Lease
from backend.operations import budgets, questions
from tests.integration.engine.conftest import Company
from tests.patience import PATIENCE

BOOKED = "SELECT scope, spent_seconds, reserved_seconds, limit_seconds FROM budgets ORDER BY scope"


async def limit(company: Company, run_id: UUID, scope: str, seconds: int) -> None:
    project_id = (await company.row(run_id))["project_id"]
    if scope == "project":
        await company.operate(budgets.limit_project, project_id, budgets.Limits(seconds=seconds))
    else:
        await company.operate(budgets.limit_month, budgets.Limits(seconds=seconds))


async def books_are_right(company: Company) -> None:
    assert await company.pool.fetch("SELECT * FROM v_ledger_check") == []
    held = "SELECT count(*) FROM project_runs WHERE granted_until IS NOT NULL AND lease_owner IS NULL"
    assert await company.pool.fetchval(held) == 0
    passed = "SELECT * FROM budgets WHERE spent_seconds + reserved_seconds > limit_seconds"
    assert await company.pool.fetch(passed) == []


SHARED = pytest.mark.parametrize("scope", ["project", "tenant_month"])
LAST = 5
"""Seconds that are enough to come to a call that is never answered, on a machine that does much else."""


@SHARED
async def test_what_a_run_works_is_booked_where_it_is_limited(company: Company, scope: str) -> None:
    run_id = await company.run()
    await limit(company, run_id, scope, 1_000)
    await company.executor.execute(run_id)
    row = await company.row(run_id)
    assert (row["status"], row["granted_until"]) == ("COMPLETED", None)
    ((_, spent, held, _),) = await company.pool.fetch(BOOKED)
    assert held == 0
    assert 0 < spent <= row["spent_seconds"]
    await books_are_right(company)


@SHARED
async def test_time_that_is_granted_too_late_stops_no_run(
    company: Company, scope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run ends with its piece, whatever the limit has left; then it is given back, to be worked on further."""
    run_id = await company.run()
    await limit(company, run_id, scope, 1_000)
    company.transport.gate.clear()
    asked = 0

    async def late(pool: Any, statement: str, *arguments: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == 2:
            await asyncio.sleep(1)
        return await fetch(pool, statement, *arguments)

    monkeypatch.setattr(worktime, "fetch", late)
    await company.worker("short", slice_seconds=0.4).execute(run_id)
    row = await company.row(run_id)
    assert (row["status"], row["lease_owner"], row["granted_until"]) == ("RUNNING", None, None)
    assert await company.pool.fetchval("SELECT count(*) FROM events WHERE type = 'budget.exceeded'") == 0
    company.transport.gate.set()
    await company.executor.execute(run_id)
    assert (await company.row(run_id))["status"] == "COMPLETED"
    await books_are_right(company)


@SHARED
async def test_a_run_that_uses_the_last_second_is_stopped_with_its_call(company: Company, scope: str) -> None:
    run_id = await company.run()
    await limit(company, run_id, scope, LAST)
    company.transport.gate.clear()
    await company.executor.execute(run_id)
    row = await company.row(run_id)
    assert (row["status"], row["stop_reason"], row["granted_until"]) == ("STOPPED_BUDGET", "budget", None)
    told = await company.pool.fetchval(
        "SELECT payload FROM events WHERE run_id = $1 AND type = 'budget.exceeded'", run_id
    )
    assert f'"scope": "{scope}"' in told
    assert '"unit": "seconds"' in told
    ((_, spent, held, _),) = await company.pool.fetch(BOOKED)
    # A worker counts its time from before it was granted, so that it never passes what was.
    assert (0 < spent <= LAST, held) == (True, 0)
    assert (row["reserved_tokens"], row["spent_tokens_input"] + row["spent_tokens_output"]) == (0, 300)
    await books_are_right(company)


LIMITS = "SELECT spent_seconds, reserved_seconds FROM budgets WHERE limit_seconds IS NOT NULL"


async def fence_of(company: Company, run_id: UUID) -> Fence:
    claimed = await company.claim(run_id)
    assert claimed is not None
    return Fence(run_id, claimed.epoch, 60)


async def renew(company: Company, fence: Fence, seconds: float) -> Any:
    return await company.pool.fetchrow(*_sent(grants.renew(fence, seconds, (0.5,), "test")))


def _sent(statement: tuple[str, list[Any]]) -> tuple[Any, ...]:
    return statement[0], *statement[1]


async def test_fifty_runs_at_once_never_pass_the_seconds_of_a_month(company: Company) -> None:
    runs = [await company.run() for _ in range(50)]
    await limit(company, runs[0], "tenant_month", 20)
    for run_id in runs[:10]:
        assert (await renew(company, await fence_of(company, run_id), 0.5))["seconds"] == 0.5
        await company.let_lease_end(run_id)
    company.transport.gate.clear()
    worker = company.worker("short", slice_seconds=0.5)

    async def work(run_id: UUID) -> None:
        # A slice may end before its node began: then the run is given back, with its time.
        while (await company.row(run_id))["status"] != "STOPPED_BUDGET":
            await worker.execute(run_id)

    driving = asyncio.gather(*map(work, runs))
    seen = []
    while not driving.done():
        (row,) = await company.pool.fetch(LIMITS)
        seen.append(row["spent_seconds"] + row["reserved_seconds"])
        await asyncio.sleep(0.01)
    await driving
    assert max(seen) <= 20
    ((spent, held),) = await company.pool.fetch(LIMITS)
    assert held == 0
    # Whoever was stopped last found less than a third of a piece: what is given back is used by those who come later.
    assert 20 - 0.5 / 3 < spent <= 20
    worked = await company.pool.fetchval("SELECT sum(spent_seconds) FROM project_runs")
    assert worked > 10
    await books_are_right(company)


class Chance:
    """What may happen to runs that share a month, in any order."""

    def __init__(self, company: Company, runs: list[UUID], seed: int) -> None:
        self.company, self.runs, self.random = company, runs, random.Random(seed)
        self.fences: dict[UUID, Fence] = {}

    async def turn(self) -> None:
        run_id = self.random.choice(self.runs)
        fence = self.fences.pop(run_id, None)
        if fence is None:
            self.fences[run_id] = await fence_of(self.company, run_id)
            return
        what = self.random.choice((self.renew, self.renew, self.renew, self.release, self.die))
        if await what(fence):
            self.fences[run_id] = fence

    async def renew(self, fence: Fence) -> bool:
        assert (await renew(self.company, Fence(fence.run_id, fence.epoch - 1, 60), 1))["fenced"] == 0
        assert (await renew(self.company, fence, self.random.choice((0.05, 0.3, 1.5))))["fenced"] == 1
        return True

    async def release(self, fence: Fence) -> bool:
        await claims.release(self.company.sessions, self.company.bell, fence.run_id, fence.epoch, lease_seconds=60)
        assert (await renew(self.company, fence, 1))["fenced"] == 0
        return False

    async def die(self, fence: Fence) -> bool:
        await self.company.let_lease_end(fence.run_id)
        await self.company.pool.execute("UPDATE project_runs SET claims = 0 WHERE id = $1", fence.run_id)
        return False


@pytest.mark.parametrize("seed", range(6))
async def test_in_whatever_order_things_happen_no_second_is_lost_or_counted_twice(company: Company, seed: int) -> None:
    runs = [await company.run() for _ in range(6)]
    await limit(company, runs[0], "tenant_month", 2)
    chance, before = Chance(company, runs, seed), 0
    for _ in range(80):
        await chance.turn()
        ((spent, held),) = await company.pool.fetch(LIMITS)
        assert before <= spent <= spent + held <= 2
        before = spent
        assert await company.pool.fetch("SELECT * FROM v_ledger_check") == []
    for run_id in runs:
        await company.let_lease_end(run_id)
        await chance.release(await fence_of(company, run_id))
    ((spent, held),) = await company.pool.fetch(LIMITS)
    since = "SELECT sum(extract(epoch FROM clock_timestamp() - started_at)) FROM project_runs"
    assert held == 0
    assert 0 < spent <= min(2, await company.pool.fetchval(since))


async def test_a_worker_that_died_is_charged_up_to_the_end_of_its_lease_and_of_its_grant(company: Company) -> None:
    run_id = await company.run()
    await limit(company, run_id, "project", 100)
    await renew(company, await fence_of(company, run_id), 10)
    moved = (
        "UPDATE project_runs SET granted_at = granted_at - interval '8s', lease_expires_at = granted_at - interval '3s'"
    )
    await company.pool.execute(moved + ", granted_until = granted_until - interval '8s'")
    await fence_of(company, run_id)
    assert [tuple(row) for row in await company.pool.fetch(LIMITS)] == [(5, 0)]
    await books_are_right(company)


async def test_a_run_that_works_over_the_end_of_a_month_is_booked_where_its_grant_is(company: Company) -> None:
    run_id = await company.run()
    await limit(company, run_id, "tenant_month", 100)
    fence = await fence_of(company, run_id)
    await renew(company, fence, 10)
    # The month ends: the row of the grant is the one of the month before, and this one's begins empty.
    await company.pool.execute("UPDATE budgets SET name = '2020-01'")
    await company.pool.execute(
        "INSERT INTO budgets (scope, owner_id, name, limit_seconds) SELECT scope, owner_id,"
        " to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM'), 50 FROM budgets"
    )
    assert (await renew(company, fence, 10))["seconds"] == 10
    rows = await company.pool.fetch("SELECT spent_seconds, reserved_seconds FROM budgets ORDER BY name")
    assert rows[0]["spent_seconds"] > 0
    assert [row["reserved_seconds"] for row in rows] == [0, 10]
    assert rows[1]["spent_seconds"] == 0


async def test_the_seconds_of_a_month_stand_for_the_next(company: Company) -> None:
    run_id = await company.run()
    await limit(company, run_id, "tenant_month", 77)
    await company.pool.execute("DELETE FROM budgets")
    await company.executor.execute(run_id)
    assert set(await company.pool.fetch("SELECT DISTINCT limit_seconds FROM budgets")) == {(77,)}
    spent = await company.pool.fetchval("SELECT spent_seconds FROM budgets ORDER BY name LIMIT 1")
    assert 0 < spent < 77


@SHARED
async def test_what_runs_worked_before_a_limit_was_set_counts(company: Company, scope: str) -> None:
    run_id = await company.run()
    await company.executor.execute(run_id)
    await limit(company, run_id, scope, 500)
    assert await company.pool.fetchval(LIMITS) == (await company.row(run_id))["spent_seconds"] > 0


async def test_a_limit_that_is_set_while_a_run_works_counts_from_its_next_call(company: Company) -> None:
    run_id = await company.run()
    company.transport.gate.clear()
    driving = asyncio.create_task(company.executor.execute(run_id))
    await company.until(lambda: company.transport.calls)
    await limit(company, run_id, "project", 900)
    assert (await company.row(run_id))["granted_until"] is None
    company.transport.gate.set()
    await driving
    assert (await company.row(run_id))["status"] == "COMPLETED"
    assert await company.pool.fetchval(LIMITS) > 0
    await books_are_right(company)


@SHARED
async def test_the_answer_gives_more_time_and_the_run_goes_on(company: Company, scope: str) -> None:
    run_id = await company.run(budget={"on_exceed": "pause"})
    await limit(company, run_id, scope, 1)
    company.transport.gate.clear()
    await company.executor.execute(run_id)
    assert (await company.row(run_id))["status"] == "PAUSED"
    asked = await company.pool.fetchrow("SELECT id, key, text FROM questions WHERE status = 'OPEN'")
    assert asked["key"].startswith(f"budget/{scope}/")
    assert "600 seconds" in asked["text"]
    await company.operate(questions.answer, asked["id"], "600", by="ada")
    company.transport.gate.set()
    await company.executor.execute(run_id)
    assert (await company.row(run_id))["status"] == "COMPLETED"
    assert await company.pool.fetchval("SELECT limit_seconds FROM budgets") == 601
    await books_are_right(company)


async def test_shares_of_a_months_seconds_are_told_of_once_by_whoever_works_on(company: Company) -> None:
    runs = [await company.run() for _ in range(3)]
    await limit(company, runs[0], "tenant_month", 100)
    await company.pool.execute("UPDATE budgets SET spent_seconds = 60")
    for run_id in runs:
        await company.executor.execute(run_id)
    told = await company.pool.fetch(
        "SELECT run_id, payload::jsonb ->> 'share' FROM events WHERE type = 'budget.warned'"
    )
    assert [tuple(row) for row in told] == [(runs[0], "0.5")]
    await company.check(runs[0])


async def role_books(company: Company, seconds: int, **changes: Any) -> tuple[UUID, Books]:
    run_id = await company.run(budget={"roles": {"lead": {"seconds": seconds}}}, **changes)
    claimed = await company.claim(run_id)
    assert claimed is not None
    lease = Lease(Fence(run_id, claimed.epoch, 60), "test", asyncio.get_running_loop(), time.monotonic() + 60)
    return run_id, Books(company.pool, lease, claimed.facts.config, company.transport, "test")


async def ask(books: Books, number: int) -> ModelReply:
    request = ModelRequest(Role.LEAD, ({"role": "user", "content": "x"},))
    return await Journal(books, Visit("work", number)).ask(request)


async def test_calls_of_a_role_wait_for_time_that_others_hold(company: Company) -> None:
    _, books = await role_books(company, 150)
    company.transport.gate.clear()
    asking = [asyncio.create_task(ask(books, number)) for number in range(20)]
    await company.until(lambda: len(company.transport.calls) == 2)
    ((_, held),) = await company.pool.fetch(LIMITS)
    assert held == 150
    company.transport.gate.set()
    assert len(await asyncio.gather(*asking)) == len(company.transport.calls) == 20
    ((spent, held),) = await company.pool.fetch(LIMITS)
    assert (0 < spent < 150, held) == (True, 0)
    await books_are_right(company)


@pytest.mark.parametrize("held_late", [True, False], ids=["held", "refused"])
async def test_a_call_waits_for_time_in_whatever_order_the_answers_come(
    company: Company, held_late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two calls that ask at once the refused one hears first, or hears when the other one has ended already."""
    _, books = await role_books(company, 100)
    heard = asyncio.Event()

    async def late(pool: Any, statement: str, *arguments: Any) -> Any:
        row = await fetch(pool, statement, *arguments)
        if "breaches" not in row:
            return row
        if (row["call"] is not None) == held_late:
            await asyncio.wait_for(heard.wait(), PATIENCE)
        elif held_late:
            # What follows in this turn of the loop is what the refused call makes of its answer.
            asyncio.get_running_loop().call_later(0.01, heard.set)
        return row

    async def one(number: int) -> ModelReply:
        reply = await ask(books, number)
        if not held_late:
            heard.set()
        return reply

    monkeypatch.setattr(journal, "fetch", late)
    assert len(await asyncio.gather(one(1), one(2))) == len(company.transport.calls) == 2
    await books_are_right(company)


async def test_a_call_is_cut_when_its_role_has_no_time_left(company: Company) -> None:
    run_id, books = await role_books(company, 1)
    company.transport.gate.clear()
    with pytest.raises(BudgetReached) as reached:
        await ask(books, 1)
    assert reached.value.limit == Limit("run_role", "lead", "seconds")
    company.transport.gate.set()
    with pytest.raises(BudgetReached, match="taken its 1 seconds"):
        await ask(books, 2)
    assert len(company.transport.calls) == 1
    assert [tuple(row) for row in await company.pool.fetch(LIMITS)] == [(1, 0)]
    assert (await company.row(run_id))["spent_tokens_input"] == 200
    await books_are_right(company)


async def test_calls_of_a_role_whose_worker_died_are_charged_what_they_held(company: Company) -> None:
    run_id, books = await role_books(company, 150)
    company.transport.gate.clear()
    asking = asyncio.create_task(ask(books, 1))
    await company.until(lambda: company.transport.calls)
    await company.let_lease_end(run_id)
    await fence_of(company, run_id)
    assert [tuple(row) for row in await company.pool.fetch(LIMITS)] == [(120, 0)]
    await books_are_right(company)
    asking.cancel()
    with pytest.raises((asyncio.CancelledError, LeaseLost)):
        await asking


async def test_what_is_played_or_answered_from_the_journal_takes_no_time_of_a_role(company: Company) -> None:
    tape = {"provider": "tape", "providers": {"tape": {"kind": "replay", "recording": "any"}}}
    _, books = await role_books(company, 1, models=tape)
    await ask(books, 1)
    assert [tuple(row) for row in await company.pool.fetch(LIMITS)] == [(0, 0)]
    await company.pool.execute("UPDATE budgets SET spent_seconds = 1")
    await ask(books, 1)
    await ask(books, 2)
    assert len(company.transport.calls) == 2


async def test_a_role_that_used_its_seconds_stops_the_run_by_its_name(company: Company) -> None:
    roles = {role: {"seconds": 1} for role in ("pm", "developer", "lead")}
    run_id = await company.run(budget={"roles": roles, "on_exceed": "degrade", "degrade_to": "test-model"})
    company.transport.gate.clear()
    await company.executor.execute(run_id)
    row = await company.row(run_id)
    assert (row["status"], row["stop_reason"]) == ("STOPPED_BUDGET", "budget")
    assert "role" in row["error"]
    await books_are_right(company)
