"""How runs are driven: to their end, through questions and requests, and through everything that goes wrong."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from backend.adapters.db.tables import ProjectRun, Question
from backend.domain.model import CallFailed, Exchange, Position, Usage
from backend.engine.reaper import Reaper
from backend.operations import questions, runs
from tests.integration.engine.conftest import Company, reply


async def test_a_run_is_driven_to_its_end_in_one_go(company: Company) -> None:
    run_id = await company.run()
    await company.executor.execute(run_id)
    row = await company.row(run_id)
    assert (row["status"], row["progress"], row["model_calls"]) == ("COMPLETED", 100, 16)
    assert row["spent_usd"] == Decimal("0.016")
    assert row["spent_seconds"] > 0
    assert len(company.transport.calls) == 16
    await company.check(run_id)


async def test_a_run_that_has_ended_is_left_alone(company: Company) -> None:
    run_id = await company.run()
    await company.executor.execute(run_id)
    before = await company.row(run_id)
    await company.executor.execute(run_id)
    assert await company.row(run_id) == before


async def test_fifty_doorbells_at_once_have_one_owner(company: Company) -> None:
    run_id = await company.run()
    await asyncio.gather(*(company.worker(str(n)).execute(run_id) for n in range(50)))
    row = await company.row(run_id)
    assert (row["status"], row["lease_epoch"]) == ("COMPLETED", 1)
    assert len(company.transport.calls) == 16


async def test_a_question_holds_the_run_until_it_is_answered(company: Company) -> None:
    run_id = await company.run("Ask a question.")
    await company.executor.execute(run_id)
    assert (await company.row(run_id))["status"] == "WAITING"
    await company.check(run_id)
    calls = len(company.transport.calls)
    async with company.sessions() as session:
        question = await session.scalar(select(Question).where(Question.run_id == run_id))
    assert question is not None
    await company.operate(questions.answer, question.id, "blue", by="ada")
    assert (await company.row(run_id))["status"] == "QUEUED"
    assert run_id in company.bell.rung
    await company.executor.execute(run_id)
    row = await company.row(run_id)
    assert row["status"] == "COMPLETED"
    assert '"confirmed": "blue"' in row["final_report"]
    assert len(company.transport.calls) == 16 > calls


async def test_an_interrupt_of_langgraph_is_a_question_too(company: Company) -> None:
    run_id = await company.run("Use an interrupt.")
    await company.executor.execute(run_id)
    assert (await company.row(run_id))["status"] == "WAITING"
    async with company.sessions() as session:
        question = await session.scalar(select(Question).where(Question.run_id == run_id))
    assert question is not None
    assert question.text == "Really?"
    await company.operate(questions.answer, question.id, "yes, really", by="ada")
    await company.executor.execute(run_id)
    row = await company.row(run_id)
    assert row["status"] == "COMPLETED"
    assert '"confirmed": "yes, really"' in row["final_report"]
    await company.check(run_id)


PAUSES = pytest.mark.parametrize(
    ("at_once", "reason", "made"), [(False, "pause", 2), (True, "pause_now", 1)], ids=["soft", "at once"]
)


async def _on_its_way_to_a_pause(company: Company, *, at_once: bool = False) -> tuple[UUID, asyncio.Task[None]]:
    run_id = await company.run()
    company.transport.gate.clear()
    driving = asyncio.create_task(company.executor.execute(run_id))
    await company.until(lambda: company.transport.calls)
    await company.operate(runs.pause, run_id, by="ada", at_once=at_once)
    reason = "pause_now" if at_once else "pause"
    await company.until(lambda: company.executor.leases[run_id].reason == reason)
    return run_id, driving


@PAUSES
async def test_a_pause_lets_the_node_finish_or_at_once_the_call_alone_and_pays_nothing_twice(
    company: Company, at_once: bool, reason: str, made: int
) -> None:
    run_id, driving = await _on_its_way_to_a_pause(company, at_once=at_once)
    company.transport.gate.set()
    await driving
    row = await company.row(run_id)
    assert (row["status"], row["stop_reason"], row["requested"]) == ("PAUSED", "paused_by_person", "none")
    assert len(company.transport.calls) == made
    finished = await company.pool.fetchval("SELECT count(*) FROM events WHERE type = 'node.finished'")
    assert finished == (0 if at_once else 1)
    await company.check(run_id)
    await company.operate(runs.resume, run_id, by="ada")
    await company.executor.execute(run_id)
    assert (await company.row(run_id))["status"] == "COMPLETED"
    assert len(company.transport.calls) == 16
    assert await company.pool.fetchval("SELECT count(*) FROM model_calls WHERE status <> 'done'") == 0
    await company.check(run_id)


async def _hanging_and_to_pause(company: Company) -> tuple[UUID, asyncio.Task[None]]:
    """A run that was asked to pause while its node hangs."""
    run_id = await company.run("hang")
    driving = asyncio.create_task(company.executor.execute(run_id))
    await company.until(lambda: len(company.transport.calls) == 2)
    await company.operate(runs.pause, run_id, by="ada")
    await company.until(lambda: company.executor.leases[run_id].reason == "pause")
    return run_id, driving


async def test_a_pause_at_once_cuts_a_node_that_a_pause_would_wait_for(company: Company) -> None:
    run_id, driving = await _hanging_and_to_pause(company)
    assert not driving.done()
    await company.operate(runs.pause, run_id, by="ada", at_once=True)
    await driving
    assert (await company.row(run_id))["status"] == "PAUSED"
    await company.check(run_id)


async def test_a_stop_does_not_wait_for_the_call_that_a_pause_at_once_waits_for(company: Company) -> None:
    run_id, driving = await _on_its_way_to_a_pause(company, at_once=True)
    await company.operate(runs.stop, run_id, by="ada")
    await driving
    row = await company.row(run_id)
    assert (row["status"], row["spent_tokens_input"], row["spent_tokens_output"]) == ("STOPPED_USER", 200, 100)
    await company.check(run_id)


async def test_a_worker_that_leaves_does_not_wait_for_the_node_of_a_paused_run(company: Company) -> None:
    run_id, driving = await _hanging_and_to_pause(company)
    company.executor.hold_all("shutdown")
    await driving
    assert (await company.row(run_id))["lease_owner"] is None
    await company.worker("another").execute(run_id)
    assert (await company.row(run_id))["status"] == "PAUSED"
    await company.check(run_id)


async def test_a_pause_that_is_taken_back_before_the_safe_point_does_not_hold_the_run(company: Company) -> None:
    run_id, driving = await _on_its_way_to_a_pause(company)
    await company.operate(runs.resume, run_id, by="ada")
    rung = len(company.bell.rung)
    company.transport.gate.set()
    await driving
    row = await company.row(run_id)
    assert (row["status"], row["requested"]) == ("RUNNING", "none")
    assert company.bell.rung[rung:] == [run_id], "nobody was told that the run goes on"
    await company.executor.execute(run_id)
    assert (await company.row(run_id))["status"] == "COMPLETED"
    await company.check(run_id)


async def test_a_stop_that_comes_while_a_pause_is_under_way_is_not_lost(company: Company) -> None:
    run_id, driving = await _on_its_way_to_a_pause(company)
    company.heartbeat.remove(company.executor.leases[run_id])  # the worker has not heard of the stop when it holds
    await company.operate(runs.stop, run_id, by="ada")
    company.transport.gate.set()
    await driving
    row = await company.row(run_id)
    assert (row["status"], row["requested"]) == ("STOPPED_USER", "none")
    assert row["ended_at"] is not None
    await company.check(run_id)


async def test_a_stop_cuts_calls_in_flight_and_books_their_ceiling(company: Company) -> None:
    run_id = await company.run()
    company.transport.gate.clear()
    driving = asyncio.create_task(company.executor.execute(run_id))
    await company.until(lambda: company.transport.calls)
    await company.operate(runs.stop, run_id, by="ada")
    await driving
    row = await company.row(run_id)
    assert (row["status"], row["spent_tokens_input"], row["spent_tokens_output"]) == ("STOPPED_USER", 200, 100)
    assert row["final_report"]
    await company.check(run_id)
    company.transport.gate.set()
    await company.operate(runs.retry, run_id, by="ada")
    await company.executor.execute(run_id)
    assert (await company.row(run_id))["status"] == "COMPLETED"
    await company.check(run_id)


async def test_a_stop_ends_a_node_that_hangs(company: Company) -> None:
    run_id = await company.run("hang")
    driving = asyncio.create_task(company.executor.execute(run_id))
    await company.until(lambda: len(company.transport.calls) == 2)
    await company.operate(runs.stop, run_id, by="ada")
    await driving
    row = await company.row(run_id)
    assert (row["status"], row["stop_reason"], row["error"]) == ("STOPPED_USER", "stopped_by_person", "Stopped by ada.")
    await company.check(run_id)


async def test_a_node_that_takes_too_long_fails_the_run(company: Company) -> None:
    run_id = await company.run("hang", limits={"node_seconds": 1})
    await company.executor.execute(run_id)
    row = await company.row(run_id)
    assert (row["status"], row["stop_reason"]) == ("FAILED", "node_timeout")
    assert row["error"] == "A node took longer than the 1 seconds that limits.node_seconds allows; retry the run."
    await company.check(run_id)


async def test_a_run_that_finds_no_memory_is_left_to_its_lease_and_its_worker_leaves(company: Company) -> None:
    run_id, answer, left = await company.run(), company.transport.send, []
    company.executor.out_of_memory = lambda: left.append(True)

    async def send(choice: Any, request: Any, position: Position, *others: Any) -> Any:
        if position.node == "review":
            raise MemoryError
        return await answer(choice, request, position, *others)

    company.transport.send = send  # type: ignore[method-assign]  # one transport of one test
    await company.executor.execute(run_id)
    row = await company.row(run_id)
    assert (row["status"], row["lease_owner"], left) == ("RUNNING", "test/one", [True])
    company.transport.send = answer  # type: ignore[method-assign]  # one transport of one test
    await company.let_lease_end(run_id)
    await company.executor.execute(run_id)
    assert ((await company.row(run_id))["status"], left) == ("COMPLETED", [True])
    await company.check(run_id)


async def test_a_node_wins_no_time_by_the_one_beside_it(company: Company) -> None:
    run_id = await company.run(limits={"node_seconds": 6})
    answer = company.transport.send

    async def send(choice: Any, request: Any, position: Position, *others: Any) -> Any:
        if position.node == "work":
            # The first part is done after a second, and committed; the second one would take eight.
            await asyncio.sleep(0.5 if position.visit % 10 == 0 else 4)
        return await answer(choice, request, position, *others)

    company.transport.send = send  # type: ignore[method-assign]  # one transport of one test
    await company.executor.execute(run_id)
    assert (await company.row(run_id))["stop_reason"] == "node_timeout"
    moved = await company.pool.fetch("SELECT key FROM tasks WHERE status = 'IN_PROGRESS'")
    assert [row["key"] for row in moved] == ["a"]
    await company.check(run_id)


async def test_a_call_in_flight_when_the_node_takes_too_long_is_paid_once(company: Company) -> None:
    run_id = await company.run(limits={"node_seconds": 8})
    company.transport.gate.clear()
    driving = asyncio.create_task(company.executor.execute(run_id))
    await company.until(lambda: company.transport.calls)
    await asyncio.sleep(8.2)  # the node's time is over
    company.transport.gate.set()
    await driving
    assert (await company.row(run_id))["stop_reason"] == "node_timeout"
    await company.check(run_id)
    await company.operate(runs.retry, run_id, by="ada")
    await company.executor.execute(run_id)
    assert (await company.row(run_id))["status"] == "COMPLETED"
    assert len(company.transport.calls) == 16
    await company.check(run_id)


async def test_a_wait_that_is_over_ends_the_run_and_says_that_nobody_answered(company: Company) -> None:
    run_id = await company.run("Ask a question.", people={"may_ask": True, "due_seconds": 1})
    await company.executor.execute(run_id)
    assert (await company.row(run_id))["status"] == "WAITING"
    reaper = Reaper(company.sessions, company.bell, every=1)
    await reaper.reap()

    async def over() -> bool:
        await reaper.reap()
        return (await company.row(run_id))["status"] != "WAITING"

    await company.until(over)
    row = await company.row(run_id)
    assert (row["status"], row["stop_reason"]) == ("STOPPED_USER", "question_expired")
    assert "Nobody answered the question colour before it was due" in row["error"]
    await company.check(run_id)


async def test_a_budget_is_never_passed_and_the_report_says_what_is_done(company: Company) -> None:
    run_id = await company.run(budget={"tokens": 1000})
    await company.executor.execute(run_id)
    row = await company.row(run_id)
    assert row["status"] == "STOPPED_BUDGET"
    assert row["spent_tokens_input"] + row["spent_tokens_output"] <= 1000
    assert "raise the limit" in row["error"]
    await company.check(run_id)


async def test_a_breach_may_pause_and_the_answer_raises_the_limit(company: Company) -> None:
    run_id = await company.run(budget={"usd": "0.007", "on_exceed": "pause"})
    await company.executor.execute(run_id)
    assert (await company.row(run_id))["status"] == "PAUSED"
    await company.check(run_id)
    async with company.sessions() as session:
        question = await session.scalar(select(Question).where(Question.run_id == run_id))
    assert question is not None
    await company.operate(questions.answer, question.id, "1.50 usd", by="ada")
    await company.executor.execute(run_id)
    assert (await company.row(run_id))["status"] == "COMPLETED"
    assert len(company.transport.calls) == 16
    await company.check(run_id)


async def test_a_breach_may_degrade_once_and_then_stops(company: Company) -> None:
    run_id = await company.run(budget={"tokens": 1000, "on_exceed": "degrade", "degrade_to": "small-model"})
    await company.executor.execute(run_id)
    assert (await company.row(run_id))["status"] == "STOPPED_BUDGET"
    told = await company.pool.fetchval("SELECT count(*) FROM events WHERE type = 'budget.degraded'")
    assert told == 1
    await company.check(run_id)


async def test_a_retryable_failure_is_tried_again_and_every_try_is_a_row(company: Company) -> None:
    run_id = await company.run()

    def script(position: Position, count: int) -> Exchange | CallFailed:
        if count == 1 and position.node == "review":
            return CallFailed("rate_limited", "slow down", retry_after=0.0)
        return reply("fine")

    company.transport.script = script
    await company.executor.execute(run_id)
    assert (await company.row(run_id))["status"] == "COMPLETED"
    tries = await company.pool.fetch(
        "SELECT attempt, status FROM model_calls WHERE node = 'review' ORDER BY visit, attempt"
    )
    assert [tuple(row) for row in tries] == [(1, "failed"), (2, "done"), (1, "failed"), (2, "done")]
    await company.check(run_id)


async def test_an_unparsable_reply_that_was_billed_is_booked(company: Company) -> None:
    run_id = await company.run()
    company.transport.script = lambda position, count: CallFailed("unparsable", "no JSON", billed=Usage(1000, 500))
    await company.executor.execute(run_id)
    row = await company.row(run_id)
    assert (row["status"], row["stop_reason"]) == ("FAILED", "model_unavailable")
    tries = len(company.transport.calls)
    assert (row["spent_tokens_input"], row["spent_tokens_output"]) == (1000 * tries, 500 * tries)
    assert row["spent_usd"] == tries * Decimal("0.002")
    await company.check(run_id)


async def test_what_a_provider_bills_beyond_the_quote_is_booked_and_told(company: Company) -> None:
    run_id = await company.run(budget={"tokens": 500})
    company.transport.script = lambda position, count: reply("long", tokens=(400, 400))
    await company.executor.execute(run_id)
    row = await company.row(run_id)
    assert (row["status"], row["spent_tokens_input"]) == ("STOPPED_BUDGET", 400)
    assert await company.pool.fetchval("SELECT count(*) FROM events WHERE type = 'budget.excess_billed'") == 1
    assert len(company.transport.calls) == 1
    await company.check(run_id)


async def test_unusable_replies_are_asked_for_again_on_a_retry(company: Company) -> None:
    run_id = await company.run("unusable")
    await company.executor.execute(run_id)
    row = await company.row(run_id)
    assert (row["status"], row["stop_reason"]) == ("FAILED", "unusable_reply")
    before = len(company.transport.calls)
    await company.operate(runs.retry, run_id, by="ada")
    await company.executor.execute(run_id)
    again = company.transport.calls[before:]
    assert [(call.node, call.ordinal) for call in again] == [("review", 1)]


async def test_a_graph_that_is_gone_is_a_clear_refusal(company: Company) -> None:
    run_id = await company.run()
    await company.pool.execute("UPDATE project_runs SET graph_version = '0' WHERE id = $1", run_id)
    await company.executor.execute(run_id)
    row = await company.row(run_id)
    assert (row["status"], row["stop_reason"]) == ("FAILED", "graph_gone")
    assert "version 0" in row["error"]


async def test_a_graph_that_says_no_end_fails_the_run(company: Company) -> None:
    run_id = await company.run("endless")
    await company.executor.execute(run_id)
    row = await company.row(run_id)
    assert (row["status"], row["stop_reason"]) == ("FAILED", "no_verdict")


async def test_working_time_is_limited(company: Company) -> None:
    run_id = await company.run("hang", budget={"seconds": 1})
    await company.executor.execute(run_id)
    row = await company.row(run_id)
    assert (row["status"], row["stop_reason"]) == ("STOPPED_BUDGET", "budget")
    assert row["error"] == "The run has worked for its 1 seconds."
    assert row["spent_seconds"] >= 1


async def test_a_worker_that_leaves_gives_its_runs_back_at_once(company: Company) -> None:
    run_id = await company.run("hang")
    driving = asyncio.create_task(company.executor.execute(run_id))
    await company.until(lambda: len(company.transport.calls) == 2)
    company.executor.hold_all("shutdown")
    await driving
    row = await company.row(run_id)
    assert (row["status"], row["lease_owner"]) == ("RUNNING", None)
    other = asyncio.create_task(company.worker("two").execute(run_id))

    async def taken_up() -> bool:
        return (await company.row(run_id))["lease_epoch"] == 2

    await company.until(taken_up)
    other.cancel()
    await asyncio.wait([other])


async def test_a_run_that_is_being_claimed_when_its_worker_leaves_is_given_back_too(company: Company) -> None:
    run_id = await company.run()

    async with company.sessions.begin() as session:
        await session.get_one(ProjectRun, run_id, with_for_update=True)
        claiming = asyncio.create_task(company.executor.execute(run_id))
        await company.waits_for_a_lock()
        company.executor.hold_all("shutdown")
    await claiming
    row = await company.row(run_id)
    assert (row["status"], row["lease_owner"], row["lease_epoch"]) == ("RUNNING", None, 1)
    assert company.transport.calls == []
    await company.worker("two").execute(run_id)
    assert (await company.row(run_id))["status"] == "COMPLETED"
    await company.check(run_id)


async def test_a_zombie_writes_nothing_after_another_worker_took_over(company: Company) -> None:
    run_id = await company.run()
    company.transport.gate.clear()
    zombie = asyncio.create_task(company.executor.execute(run_id))
    await company.until(lambda: company.transport.calls)
    await asyncio.to_thread(company.heartbeat.stop)  # A beat that comes now would hold what is to run out.
    await company.pool.execute("UPDATE project_runs SET lease_expires_at = clock_timestamp() - interval '1s'")
    company.transport.gate.set()
    await company.worker("two").execute(run_id)
    await zombie
    row = await company.row(run_id)
    assert row["status"] == "COMPLETED"
    booked = await company.pool.fetch("SELECT status, count(*) FROM model_calls GROUP BY status ORDER BY status")
    assert dict(booked) in ({"done": 16}, {"done": 16, "failed": 1})
    await company.check(run_id)


async def test_a_run_that_kills_its_workers_is_buried_after_its_last_claim(company: Company) -> None:
    run_id = await company.run()
    await company.pool.execute(
        "UPDATE project_runs SET status = 'RUNNING', started_at = now(), claims = 5, lease_epoch = 5,"
        " lease_expires_at = now() WHERE id = $1",
        run_id,
    )
    await company.pool.execute("UPDATE projects SET status = 'RUNNING'")
    await company.executor.execute(run_id)
    row = await company.row(run_id)
    assert (row["status"], row["stop_reason"]) == ("FAILED", "poisoned")
    assert await company.pool.fetchval("SELECT count(*) FROM dead_letters WHERE run_id = $1", run_id) == 1
    await company.check(run_id)
