"""Many at once: reservations near a limit, and questions that are past due."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from backend.adapters.db.commit import Fence
from backend.domain.budget import BudgetReached
from backend.domain.model import ModelReply, ModelRequest
from backend.domain.ports import Visit
from backend.domain.role import Role
from backend.engine.journal import Books, Journal
from backend.engine.leases import Lease
from backend.engine.reaper import Reaper
from backend.errors import Invalid, LimitReached
from backend.operations import budgets, questions, runs
from backend.operations.ledger import GONE
from tests.integration.engine.conftest import Company


async def test_two_hundred_parallel_calls_never_pass_a_limit(company: Company) -> None:
    run_id = await company.run(budget={"tokens": 3_050, "roles": {"developer": {"tokens": 2_100}}})
    claimed = await company.claim(run_id)
    assert claimed is not None
    lease = Lease(Fence(run_id, claimed.epoch), "test", asyncio.get_running_loop(), time.monotonic() + 60)
    books = Books(company.pool, lease, claimed.facts.config, company.transport, "test")
    company.transport.gate.clear()

    async def ask(number: int) -> ModelReply:
        role = Role.DEVELOPER if number % 2 else Role.LEAD
        return await Journal(books, Visit("work", number)).ask(ModelRequest(role, ({"role": "user", "content": "x"},)))

    asking = [asyncio.create_task(ask(number)) for number in range(200)]
    await company.until(lambda: sum(task.done() for task in asking) == 190)
    held = await company.row(run_id)
    assert held["reserved_tokens"] == 3_000
    company.transport.gate.set()
    answered = await asyncio.gather(*asking, return_exceptions=True)
    refused = [one for one in answered if isinstance(one, LimitReached)]
    assert len(refused) == 190
    assert len(company.transport.calls) == 10
    cap = await company.pool.fetchrow("SELECT spent_tokens, reserved_tokens, limit_tokens FROM budgets")
    assert cap["reserved_tokens"] == 0
    assert cap["spent_tokens"] <= cap["limit_tokens"]
    assert await company.pool.fetch("SELECT * FROM v_ledger_check") == []


async def _books(company: Company, run_id: UUID) -> Books:
    claimed = await company.claim(run_id)
    assert claimed is not None
    fence = Fence(run_id, claimed.epoch, 60)
    lease = Lease(fence, "test", asyncio.get_running_loop(), time.monotonic() + 60)
    return Books(company.pool, lease, claimed.facts.config, company.transport, "test")


async def _ask(books: Books, number: int) -> ModelReply:
    request = ModelRequest(Role.LEAD, ({"role": "user", "content": "x"},))
    return await Journal(books, Visit("work", number)).ask(request)


async def test_the_limits_of_a_month_stand_for_the_months_that_follow(company: Company) -> None:
    await company.operate(budgets.limit_month, budgets.Limits(tokens=310, usd=Decimal(7)))
    # The month is over: nobody has opened the one that we are in.
    await company.pool.execute("UPDATE budgets SET name = '2001-01', spent_tokens = 130")
    books = await _books(company, await company.run())
    opened = await company.pool.fetch(
        "SELECT limit_tokens, limit_usd, spent_tokens FROM budgets"
        " WHERE name = to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM')"
    )
    assert [tuple(row) for row in opened] == [(310, Decimal(7), 0)]
    await _ask(books, 1)
    with pytest.raises(LimitReached, match="tokens of the month"):
        await _ask(books, 2)
    await company.operate(budgets.limit_month, budgets.Limits())
    await company.pool.execute("UPDATE budgets SET name = '2001-02' WHERE name > '2001-02'")
    await _books(company, await company.run())
    assert await company.pool.fetchval("SELECT count(*) FROM budgets WHERE name > '2001-02'") == 0


@pytest.mark.parametrize("scope", ["project", "tenant_month"])
async def test_a_limit_that_is_set_while_a_run_begins_counts_its_calls(company: Company, scope: str) -> None:
    run_id = await company.run()
    project_id = (await company.row(run_id))["project_id"]
    async with company.sessions.begin() as session:
        if scope == "project":
            await budgets.limit_project(session, project_id, budgets.Limits(tokens=10_000))
        else:
            await budgets.limit_month(session, budgets.Limits(tokens=10_000))
        books = await _books(company, run_id)
        asking = asyncio.create_task(_ask(books, 1))
        await company.waits_for_a_lock(unless=asking)
    await asking
    kept = await company.pool.fetch("SELECT scope, spent_tokens, reserved_tokens FROM budgets")
    assert [tuple(row) for row in kept] == [(scope, 120, 0)]
    assert await company.pool.fetch("SELECT * FROM v_ledger_check") == []


SCOPES = pytest.mark.parametrize(
    ("scope", "name"), [("run_role", "lead"), ("project", "all"), ("tenant_month", None)], ids=lambda said: str(said)
)


async def _limit(company: Company, run_id: UUID, scope: str, name: str | None, unit: str, most: Any) -> None:
    owner = {"run_role": "id", "project": "project_id", "tenant_month": "tenant_id"}[scope]
    await company.pool.execute(
        f"INSERT INTO budgets (scope, owner_id, name, limit_{unit}) SELECT $2, {owner},"
        " coalesce($3, to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM')), $4 FROM project_runs WHERE id = $1",
        run_id,
        scope,
        name,
        most,
    )


@SCOPES
@pytest.mark.parametrize(("unit", "most", "each"), [("tokens", 3_050, 300), ("usd", Decimal("0.0205"), "0.002")])
async def test_two_hundred_parallel_calls_never_pass_a_limit_beside_the_run(
    company: Company, scope: str, name: str | None, unit: str, most: Any, each: Any
) -> None:
    run_id = await company.run()
    await _limit(company, run_id, scope, name, unit, most)
    books = await _books(company, run_id)
    company.transport.gate.clear()
    asking = [asyncio.create_task(_ask(books, number)) for number in range(200)]
    await company.until(lambda: sum(task.done() for task in asking) == 190)
    held = await company.pool.fetchval(f"SELECT reserved_{unit} FROM budgets")
    assert held == 10 * Decimal(each)
    company.transport.gate.set()
    answered = await asyncio.gather(*asking, return_exceptions=True)
    refused = [one for one in answered if isinstance(one, BudgetReached)]
    assert (len(refused), len(company.transport.calls)) == (190, 10)
    assert {(one.limit.scope, one.limit.unit) for one in refused} == {(scope, unit)}
    row = await company.pool.fetchrow("SELECT * FROM budgets")
    assert row[f"reserved_{unit}"] == 0
    assert 0 < row[f"spent_{unit}"] <= most


async def test_of_two_hundred_parallel_calls_none_is_sent_when_the_time_is_over(company: Company) -> None:
    run_id = await company.run(budget={"seconds": 100})
    books = await _books(company, run_id)
    await company.pool.execute("UPDATE project_runs SET spent_seconds = 100 WHERE id = $1", run_id)
    answered = await asyncio.gather(*(_ask(books, number) for number in range(200)), return_exceptions=True)
    assert {type(one) for one in answered} == {BudgetReached}
    assert "worked for its 100 seconds" in str(answered[0])
    assert company.transport.calls == []


async def test_a_call_in_flight_is_cut_when_the_time_is_over_and_booked_at_its_ceiling(company: Company) -> None:
    run_id = await company.run(budget={"seconds": 5})
    company.transport.gate.clear()
    await company.executor.execute(run_id)
    row = await company.row(run_id)
    assert (row["status"], row["spent_tokens_input"]) == ("STOPPED_BUDGET", 200)
    company.transport.gate.set()
    await company.check(run_id)


@SCOPES
async def test_shares_of_every_limit_are_warned_of_once(company: Company, scope: str, name: str | None) -> None:
    run_id = await company.run(budget={"warn_at": [0.25, 0.5]})
    await _limit(company, run_id, scope, name, "tokens", 1_000)
    books = await _books(company, run_id)
    for number in range(5):
        await _ask(books, number)
    told = await company.pool.fetch("SELECT payload FROM events WHERE type = 'budget.warned' ORDER BY seq")
    facts = [json.loads(row[0]) if isinstance(row[0], str) else row[0] for row in told]
    assert [(fact["scope"], fact["unit"], fact["share"], fact["spent"]) for fact in facts] == [
        (scope, "tokens", 0.25, 360),
        (scope, "tokens", 0.5, 600),
    ]


async def test_shares_of_the_time_are_warned_of_once_over_slices(company: Company) -> None:
    run_id = await company.run("hang", budget={"seconds": 8, "warn_at": [0.1, 0.5]})
    query = (
        "SELECT array_agg(payload ->> 'share' ORDER BY seq) FROM events"
        " WHERE type = 'budget.warned' AND payload ->> 'unit' = 'seconds'"
    )

    async def warned() -> bool:
        return "0.1" in (await company.pool.fetchval(query) or ())

    first = company.worker("first", shutdown_seconds=0.1)
    driving = asyncio.create_task(first.execute(run_id))
    await company.until(warned)
    first.hold_all("shutdown")
    await driving
    await company.executor.execute(run_id)
    assert (await company.row(run_id))["status"] == "STOPPED_BUDGET"
    assert await company.pool.fetchval(query) == ["0.1", "0.5"]


@SCOPES
async def test_the_answer_raises_the_limit_that_was_reached(company: Company, scope: str, name: str | None) -> None:
    run_id = await company.run(budget={"usd": "5", "on_exceed": "pause"})
    for role in ("pm", "developer", "lead") if scope == "run_role" else (name,):
        await _limit(company, run_id, scope, role, "usd", Decimal("0.005"))
    answers = 0
    while (await company.row(run_id))["status"] not in {"COMPLETED", "FAILED"} and answers < 9:
        await company.executor.execute(run_id)
        asked = await company.pool.fetchrow("SELECT id, text FROM questions WHERE status = 'OPEN'")
        if asked is None:
            continue
        answers += 1
        with pytest.raises(Invalid, match="A limit is raised by"):
            await company.operate(questions.answer, asked["id"], "plenty", by="ada")
        await company.operate(questions.answer, asked["id"], "2", by="ada")
    assert (await company.row(run_id))["status"] == "COMPLETED"
    assert (await company.row(run_id))["limit_usd"] == 5
    raised = await company.pool.fetchval("SELECT count(*) FROM budgets WHERE limit_usd = 2.005")
    assert raised == answers > 0
    assert len(company.transport.calls) == 16
    await company.check(run_id)


async def test_a_question_that_is_past_due_stops_the_run_or_takes_its_default(company: Company) -> None:
    for expiry, default, status in (("stop", None, "STOPPED_USER"), ("default", "green", "QUEUED")):
        run_id = await company.run("Ask a question.")
        await company.executor.execute(run_id)
        await company.pool.execute(
            "UPDATE questions SET due_at = now() - interval '1s', on_expiry = $2, \"default\" = $3 WHERE run_id = $1",
            run_id,
            expiry,
            default,
        )
        await Reaper(company.sessions, company.bell, every=1).reap()
        assert (await company.row(run_id))["status"] == status
        assert await company.pool.fetchval("SELECT status FROM questions WHERE run_id = $1", run_id) == "EXPIRED"
    await company.executor.execute(run_id)
    assert '"confirmed": "green"' in (await company.row(run_id))["final_report"]
    await company.check(run_id)


async def _reserved(company: Company) -> list[int]:
    rows = await company.pool.fetch("SELECT reserved_tokens FROM project_runs UNION SELECT count(*) FROM model_calls")
    return [row[0] for row in rows]


async def test_a_call_that_waits_for_its_provider_holds_no_reservation(company: Company) -> None:
    run_id = await company.run()
    company.transport.admitted.clear()
    driving = asyncio.create_task(company.executor.execute(run_id))
    await company.until(lambda: company.transport.waiting > 0)
    assert await _reserved(company) == [0]
    assert company.transport.calls == []
    company.transport.admitted.set()
    await driving
    assert (await company.row(run_id))["status"] == "COMPLETED"
    await company.check(run_id)


async def test_a_call_that_waits_for_its_provider_gives_way_to_a_pause(company: Company) -> None:
    run_id = await company.run()
    company.transport.admitted.clear()
    driving = asyncio.create_task(company.executor.execute(run_id))
    await company.until(lambda: company.transport.waiting > 0)
    await company.operate(runs.pause, run_id, by="ada", at_once=True)
    await driving
    assert (await company.row(run_id))["status"] == "PAUSED"
    assert await _reserved(company) == [0]
    company.transport.admitted.set()
    await company.operate(runs.resume, run_id, by="ada")
    await company.executor.execute(run_id)
    assert (await company.row(run_id))["status"] == "COMPLETED"
    await company.check(run_id)


async def test_fifty_bells_at_once_give_a_run_one_owner(company: Company) -> None:
    run_id = await company.run()
    workers = [company.worker(f"worker {number}") for number in range(5)]
    await asyncio.gather(*(worker.execute(run_id) for worker in workers for _ in range(10)))
    row = await company.row(run_id)
    assert (row["status"], row["lease_epoch"]) == ("COMPLETED", 1)
    assert len(company.transport.calls) == len(set(company.transport.calls))
    await company.check(run_id)


async def test_a_run_that_is_lost_twice_is_rung_for_twice_at_once(company: Company) -> None:
    run_id = await company.run()
    reaper = Reaper(company.sessions, company.bell, every=0)
    lapse = "UPDATE project_runs SET status = 'RUNNING', lease_expires_at = now() - interval '1s', lease_epoch = $2"
    for epoch in (1, 2):
        await company.pool.execute(f"{lapse} WHERE id = $1", run_id, epoch)
        await reaper.reap()
        await reaper.reap()
        assert company.bell.rung.count(run_id) == epoch


REPLAYED = {"models": {"provider": "tape", "providers": {"tape": {"kind": "replay", "recording": "any"}}}}


@pytest.mark.parametrize(("settings", "billed"), [({}, 20), (REPLAYED, 0)], ids=["sent", "replayed"])
async def test_calls_of_a_worker_that_died_are_settled_at_once_against_every_limit(
    company: Company, settings: dict[str, Any], billed: int
) -> None:
    run_id = await company.run(**settings)
    for scope, name in (("run_role", "lead"), ("project", "all"), ("tenant_month", None)):
        await _limit(company, run_id, scope, name, "tokens", 100_000)
    books = await _books(company, run_id)
    company.transport.gate.clear()
    asking = [asyncio.create_task(_ask(books, number)) for number in range(20)]
    await company.until(lambda: len(company.transport.calls) == 20)
    await company.pool.execute("UPDATE project_runs SET lease_expires_at = clock_timestamp() - interval '1s'")
    assert await _books(company, run_id) is not None  # another worker claims the run
    row = await company.row(run_id)
    assert (row["spent_tokens_input"], row["reserved_tokens"], row["model_calls"]) == (billed * 300, 0, billed)
    assert row["spent_usd"] == billed * Decimal("0.002")
    statuses = await company.pool.fetchval("SELECT array_agg(DISTINCT status) FROM model_calls")
    assert statuses == ["failed" if billed else "released"]
    kept = await company.pool.fetch("SELECT scope, spent_tokens, spent_usd, reserved_tokens FROM budgets")
    assert {tuple(row)[1:] for row in kept} == {(billed * 300, billed * Decimal("0.002"), 0)}
    assert len(kept) == 3
    told = await company.pool.fetchval("SELECT count(*) FROM events WHERE type = 'model.failed'")
    numbers = await company.pool.fetch("SELECT seq FROM events WHERE run_id = $1 ORDER BY seq", run_id)
    assert (told, [one[0] for one in numbers]) == (billed, list(range(1, row["event_seq"] + 1)))
    assert await company.pool.fetchval("SELECT spent_usd FROM projects") == row["spent_usd"]
    assert await company.pool.fetch("SELECT * FROM v_ledger_check") == []
    for one in asking:
        one.cancel()
    await asyncio.wait(asking)


@pytest.mark.parametrize("who", ["the node", "a stop"])
async def test_a_call_that_is_cut_while_it_is_reserved_is_not_sent_and_holds_nothing(
    company: Company, who: str
) -> None:
    run_id = await company.run(budget={"tokens": 3_050})
    books = await _books(company, run_id)
    async with company.pool.acquire() as other, other.transaction():
        await other.execute("SELECT FROM project_runs WHERE id = $1 FOR UPDATE", run_id)
        request = ModelRequest(Role.LEAD, ({"role": "user", "content": "x"},))
        asking = asyncio.create_task(Journal(books, Visit("work", 1)).ask(request))
        await company.waits_for_a_lock()
        cutting = asyncio.create_task(books.cut_calls()) if who == "a stop" else None
        asking.cancel()
        await asyncio.wait([asking], timeout=0.1)
    await asyncio.gather(asking, *books.in_flight, *([cutting] if cutting else []), return_exceptions=True)
    assert company.transport.calls == []
    rows = await company.pool.fetch("SELECT status, error, cost_usd FROM model_calls")
    assert [tuple(row) for row in rows] == [("released", GONE, 0)]
    run = await company.row(run_id)
    assert (run["reserved_tokens"], run["model_calls"], run["spent_tokens_input"]) == (0, 0, 0)
    assert await company.pool.fetch("SELECT * FROM v_ledger_check") == []


class SlowPool:
    """A pool whose statements for one row each wait until they are let through."""

    def __init__(self, pool: Any, statements: int) -> None:
        self._pool, self.reached = pool, 0
        self.gates = [asyncio.Event() for _ in range(statements)]

    async def fetchrow(self, *asked: Any) -> Any:
        self.reached += 1
        if self.reached <= len(self.gates):
            await self.gates[self.reached - 1].wait()
        return await self._pool.fetchrow(*asked)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)


@pytest.mark.parametrize("outcome", ["done", "released"])
async def test_a_call_that_is_cut_while_it_is_booked_is_booked(company: Company, outcome: str) -> None:
    run_id = await company.run()
    books = await _books(company, run_id)
    pool = books.pool = SlowPool(company.pool, 2)
    asking = asyncio.create_task(_ask(books, 1))
    await company.until(lambda: pool.reached == 1)
    if outcome == "released":
        asking.cancel()
        await asyncio.wait([asking])
    pool.gates[0].set()
    await company.until(lambda: pool.reached == 2)
    cutting = asyncio.create_task(books.cut_calls())
    asking.cancel()
    await asyncio.wait([cutting], timeout=0.1)
    pool.gates[1].set()
    await asyncio.gather(cutting, asking, return_exceptions=True)
    assert [row[0] for row in await company.pool.fetch("SELECT status FROM model_calls")] == [outcome]
    assert (await company.row(run_id))["reserved_tokens"] == 0
    assert await company.pool.fetch("SELECT * FROM v_ledger_check") == []
    await _ask(books, 1)
    assert len(company.transport.calls) == 1, "what was paid for is not asked again"


async def test_a_claim_that_had_to_wait_for_an_answer_knows_it(company: Company) -> None:
    run_id = await company.run("a question")
    await company.executor.execute(run_id)
    # As if the worker had died between asking and waiting.
    for status in ("QUEUED", "RUNNING"):
        await company.pool.execute("UPDATE project_runs SET status = $2 WHERE id = $1", run_id, status)
    question = await company.pool.fetchrow("SELECT id, key FROM questions WHERE run_id = $1", run_id)
    async with company.sessions.begin() as session:
        await questions.answer(session, question["id"], "blue", by="ada")
        await session.flush()
        claiming = asyncio.create_task(company.claim(run_id))
        await company.waits_for_a_lock()
    claimed = await claiming
    assert claimed is not None
    assert (claimed.asks, claimed.answers[question["key"]].text) == (False, "blue")


async def _asked(journal: Journal) -> ModelReply:
    return await journal.ask(ModelRequest(Role.LEAD, ({"role": "user", "content": "x"},)))


async def _noted(journal: Journal) -> None:
    await journal.note("command.finished", {"command": "make", "exit_code": 0})


@pytest.mark.parametrize(
    ("does", "tells"), [(_noted, "command.finished"), (_asked, "model.called")], ids=["note", "ask"]
)
async def test_what_is_sent_again_while_its_first_sending_is_on_its_way_still_is_done_once(
    company: Company, does: Callable[[Journal], Awaitable[Any]], tells: str
) -> None:
    run_id = await company.run()
    books = await _books(company, run_id)
    # A connection was lost, and the server does not know that yet: the statement waits on both of them.
    async with company.pool.acquire() as other, other.transaction():
        await other.execute("SELECT FROM project_runs WHERE id = $1 FOR UPDATE", run_id)
        sending = [asyncio.create_task(does(Journal(books, Visit("work", 1)))) for _ in range(2)]
        await company.waits_for_a_lock(2)
    await asyncio.gather(*sending)
    assert await company.pool.fetchval("SELECT count(*) FROM events WHERE type = $1", tells) == 1
    told = await company.pool.fetch("SELECT seq FROM events WHERE run_id = $1 ORDER BY seq", run_id)
    row = await company.row(run_id)
    assert [one["seq"] for one in told] == list(range(1, row["event_seq"] + 1))
    assert row["reserved_tokens"] == 0
    assert await company.pool.fetch("SELECT * FROM v_ledger_check") == []
