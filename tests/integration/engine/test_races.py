"""Many at once: reservations near a limit, and questions that are past due."""

from __future__ import annotations

import asyncio
import time

from backend.adapters.db.commit import Fence
from backend.domain.model import ModelReply, ModelRequest
from backend.domain.ports import Visit
from backend.domain.role import Role
from backend.engine import claims
from backend.engine.journal import Books, Journal
from backend.engine.leases import Lease
from backend.engine.reaper import Reaper
from backend.errors import LimitReached
from backend.operations import runs
from tests.integration.engine.conftest import Company


async def test_two_hundred_parallel_calls_never_pass_a_limit(company: Company) -> None:
    run_id = await company.run(budget={"tokens": 3_050, "roles": {"developer": {"tokens": 2_100}}})
    claimed = await claims.claim(company.sessions, company.bell, run_id, owner="test", lease_seconds=60, max_claims=5)
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
    await company.operate(runs.pause, run_id, by="ada")
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
