"""What nobody looks after is stopped, asked again or driven alone: no run waits for ever or dies for another one."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from backend.adapters.db.checkpointer.retention import thin
from backend.domain.model import CallFailed
from backend.engine.reaper import Reaper
from backend.operations import costs, invariants, questions, reports, runs
from tests.integration.engine.conftest import Company, reply
from tests.patience import PATIENCE

_LOSE = (
    "UPDATE project_runs SET status = 'RUNNING', started_at = clock_timestamp(), lease_owner = 'test/dead',"
    " lease_epoch = lease_epoch + 1, lease_expires_at = clock_timestamp() + make_interval(secs => $2), claims = $3"
    " WHERE id = $1"
)


async def lose(company: Company, run_id: UUID, *, seconds: float = 0.0, claims: int = 1) -> None:
    """Let a worker that is dead by now have claimed the run; its lease goes on for so long."""
    await company.pool.execute(_LOSE, run_id, seconds, claims)
    await company.pool.execute("UPDATE projects SET status = 'RUNNING' WHERE active_run_id = $1", run_id)


async def holds(company: Company) -> None:
    async with company.sessions() as session:
        assert [checked for checked in await invariants.check(session) if checked.offences] == []


async def test_a_run_whose_worker_died_is_stopped_at_once_and_its_call_in_flight_is_booked(company: Company) -> None:
    run_id = await company.run()
    company.transport.gate.clear()
    driving = asyncio.create_task(company.executor.execute(run_id))
    await company.until(lambda: company.transport.calls)
    await asyncio.to_thread(company.heartbeat.stop)  # A beat that comes now would hold what is to run out.
    await company.pool.execute("UPDATE project_runs SET lease_expires_at = clock_timestamp(), lease_owner = 'dead'")
    await company.operate(runs.stop, run_id, by="ada")
    row = await company.row(run_id)
    assert (row["status"], row["requested"], row["reserved_tokens"]) == ("STOPPED_USER", "none", 0)
    assert row["model_calls"] == 1
    # The worker was only frozen: what it still has in hand changes nothing.
    company.transport.gate.set()
    await asyncio.wait([driving])
    assert (await company.row(run_id))["event_seq"] == row["event_seq"]
    await holds(company)


async def test_the_reaper_ends_a_run_that_was_to_stop_when_its_worker_dies_before_it_obeys(company: Company) -> None:
    run_id = await company.run()
    await lose(company, run_id, seconds=60)
    await company.operate(runs.stop, run_id, by="ada")
    reaper = Reaper(company.sessions, company.bell, every=60)
    await reaper.reap()
    assert (await company.row(run_id))["status"] == "RUNNING"
    await company.pool.execute("UPDATE project_runs SET lease_expires_at = clock_timestamp()")
    await reaper.reap()
    row = await company.row(run_id)
    assert (row["status"], row["error"]) == ("STOPPED_USER", "Stopped by ada.")


async def test_a_run_that_is_out_of_order_keeps_the_reaper_from_no_other(company: Company) -> None:
    broken, forgotten, waiting = [await company.run("Ask a question.") for _ in range(3)]
    for run_id in (broken, waiting):
        await company.executor.execute(run_id)
    # As nobody should find it: it has ended, and asks still.
    for status in ("QUEUED", "RUNNING", "FAILED"):
        await company.pool.execute("UPDATE project_runs SET status = $2, claims = 0 WHERE id = $1", broken, status)
    await company.pool.execute("UPDATE questions SET due_at = clock_timestamp()")
    await lose(company, forgotten)
    await Reaper(company.sessions, company.bell, every=60).reap()
    assert set(company.bell.rung) == {forgotten, waiting}
    ends = dict(await company.pool.fetch("SELECT id, stop_reason FROM project_runs WHERE stop_reason IS NOT NULL"))
    assert ends[waiting] == "question_expired"
    asked = dict(await company.pool.fetch("SELECT run_id, status FROM questions"))
    assert asked == {broken: "OPEN", waiting: "EXPIRED"}


@pytest.mark.parametrize("brief", ["Ask a question.", "Use an interrupt."])
async def test_a_retry_of_a_run_that_was_stopped_while_it_waited_asks_again(company: Company, brief: str) -> None:
    run_id = await company.run(brief)
    await company.executor.execute(run_id)
    await company.operate(runs.stop, run_id, by="ada")
    assert await company.pool.fetchval("SELECT status FROM questions") == "WITHDRAWN"
    await company.operate(runs.retry, run_id, by="ada")
    await company.executor.execute(run_id)
    assert (await company.row(run_id))["status"] == "WAITING"
    found = await company.pool.fetchrow("SELECT id, status FROM questions")
    assert found["status"] == "OPEN"
    await company.operate(questions.answer, found["id"], "blue", by="ada")
    await company.executor.execute(run_id)
    row = await company.row(run_id)
    assert row["status"] == "COMPLETED"
    assert '"confirmed": "blue"' in row["final_report"]
    asked = "SELECT count(*) FROM events WHERE type = 'question.asked'"
    assert await company.pool.fetchval(asked) == 2
    await holds(company)


async def test_a_question_that_was_past_due_has_all_of_its_time_again_after_a_retry(company: Company) -> None:
    run_id = await company.run("Ask a question.")
    await company.executor.execute(run_id)
    await company.pool.execute(
        "UPDATE questions SET created_at = now() - interval '3 hours', due_at = now() - interval '2 hours'"
    )
    await Reaper(company.sessions, company.bell, every=60).reap()
    assert (await company.row(run_id))["status"] == "STOPPED_USER"
    await company.operate(runs.retry, run_id, by="ada")
    left = "SELECT status, due_at > now() + interval '50 minutes' AS due FROM questions"
    assert tuple(await company.pool.fetchrow(left)) == ("OPEN", True)


async def test_a_run_that_ends_by_itself_asks_nobody_any_more(company: Company) -> None:
    run_id = await company.run()
    await company.pool.execute(
        "INSERT INTO questions (id, tenant_id, run_id, key, kind, asked_by, text, options, on_expiry)"
        " SELECT gen_random_uuid(), tenant_id, id, 'late', 'budget', 'pm', 'More?', '[]', 'stop' FROM project_runs"
    )
    await company.executor.execute(run_id)
    assert (await company.row(run_id))["status"] == "COMPLETED"
    assert await company.pool.fetchval("SELECT status FROM questions") == "WITHDRAWN"
    await holds(company)


async def test_runs_in_their_last_claims_are_driven_one_at_a_time(company: Company) -> None:
    suspects = [await company.run() for _ in range(3)]
    for run_id in suspects:
        await lose(company, run_id, claims=3)
    healthy = await company.run()
    await lose(company, healthy, claims=2)
    company.transport.gate.clear()
    worker = company.worker("one")
    driving = [asyncio.create_task(worker.execute(run_id)) for run_id in (*suspects, healthy)]

    async def all_asked() -> bool:
        return {row["claims"] for row in await company.pool.fetch("SELECT claims FROM project_runs")} == {3, 4}

    await company.until(all_asked)
    await company.until(lambda: sum(task.done() for task in driving) == 2)
    claims = [row["claims"] for row in await company.pool.fetch("SELECT claims FROM project_runs ORDER BY claims")]
    assert claims == [3, 3, 3, 4], "more than one run under suspicion was taken up"
    driven = set(worker.leases)
    assert healthy in driven
    assert len(driven) == 2
    # As soon as the one gets on, the others are rung for.
    company.transport.gate.set()
    await company.until(lambda: set(suspects) - driven <= set(company.bell.rung))
    await asyncio.gather(*driving)
    while left := await company.pool.fetch("SELECT id FROM project_runs WHERE ended_at IS NULL"):
        await asyncio.gather(*(worker.execute(row["id"]) for row in left))
    assert await company.pool.fetch("SELECT 1 FROM project_runs WHERE status <> 'COMPLETED'") == []


async def test_what_the_journal_gave_to_a_visit_that_ran_again_is_told_as_saved(company: Company) -> None:
    run_id = await company.run()
    broken = CallFailed("refused", "no")
    company.transport.script = lambda place, count: broken if (place.ordinal, count) == (2, 1) else reply("fine")

    async def saved() -> dict[str, object]:
        async with company.sessions() as session:
            return await costs.saved(session, run_id)

    await company.executor.execute(run_id)
    assert (await company.row(run_id))["status"] == "FAILED"
    assert await saved() == {"calls": 0, "tokens": 0, "usd": "0.000000"}
    company.transport.script = lambda place, count: reply("fine")
    await company.operate(runs.retry, run_id, by="ada")
    await company.executor.execute(run_id)
    assert (await company.row(run_id))["status"] == "COMPLETED"
    assert await saved() == {"calls": 1, "tokens": 120, "usd": "0.001000"}
    async with company.sessions() as session:
        run = await runs.get(session, run_id)
        assert (await costs.of_run(session, run))["saved"] == (await reports.of_run(session, run))["saved"]


async def test_a_worker_that_took_a_run_up_again_after_its_lease_ran_out_gives_it_back_when_it_leaves(
    company: Company,
) -> None:
    worker, run_id = company.executor, await company.run()
    company.transport.gate.clear()
    before = asyncio.create_task(worker.execute(run_id))
    await company.until(lambda: company.transport.calls)
    lease = worker.leases[run_id]
    company.heartbeat.remove(lease)
    await company.pool.execute("UPDATE project_runs SET lease_expires_at = clock_timestamp()")
    again = asyncio.create_task(worker.execute(run_id))
    await company.until(lambda: len(company.transport.calls) == 2)
    lease.lose()
    await before
    worker.hold_all("shutdown")
    await asyncio.wait_for(again, PATIENCE)
    row = await company.row(run_id)
    assert (row["status"], row["lease_owner"], row["lease_epoch"], row["claims"]) == ("RUNNING", None, 2, 0)
    await holds(company)


_WRITE = (
    "INSERT INTO checkpoint_writes (thread_id, namespace, checkpoint_id, task_id, idx, channel, value)"
    " VALUES ($1, 'node:1', gen_random_uuid(), gen_random_uuid(), 0, 'said', '1')"
)


async def test_a_run_that_is_retried_before_its_worker_has_tidied_up_keeps_what_its_subgraphs_wrote(
    company: Company,
) -> None:
    left = []
    for brief in ("A project.", "unusable"):
        run_id = await company.run(brief)
        await company.executor.execute(run_id)
        if brief == "unusable":
            await company.operate(runs.retry, run_id, by="ada")
        await company.pool.execute(_WRITE, run_id)
        await thin(company.pool, run_id)
        left.append(await company.pool.fetchval("SELECT count(*) FROM checkpoint_writes WHERE namespace <> ''"))
    assert left == [0, 1]


async def test_a_run_that_was_given_back_lost_no_lease(company: Company) -> None:
    run_id = await company.run()
    company.transport.gate.clear()
    for _ in range(2):
        driving = asyncio.create_task(company.executor.execute(run_id))
        await company.until(lambda: run_id in company.executor.leases)
        company.executor.leases[run_id].hold("slice")
        company.transport.gate.set()
        await driving
    told = "SELECT type, payload ->> 'owner' AS owner FROM events WHERE type IN ('run.resumed', 'run.lease_lost')"
    assert [tuple(row) for row in await company.pool.fetch(told)] == [("run.resumed", "test/one")]
    await lose(company, run_id, claims=1)
    await company.executor.execute(run_id)
    lost = await company.pool.fetch(f"{told} AND payload ->> 'owner' <> 'test/one'")
    assert [tuple(row) for row in lost] == [("run.lease_lost", "test/dead")]
    await holds(company)
