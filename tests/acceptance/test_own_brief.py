"""A brief of one's own: real workers, a real model endpoint, real git, sandbox and scanners, and every way to end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from backend.adapters.db.engine import Sessions
from backend.operations import runs
from tests.acceptance.firm import CALL_USD, Firm
from tests.small_company import SmallCompany


async def test_a_brief_becomes_a_tested_and_scanned_repository(hire: Callable[..., Firm]) -> None:
    firm = hire(SmallCompany(delay=0.2))
    run_id = await firm.begin()
    firm.start()
    await firm.ended(run_id)
    assert await firm.one("status", run_id) == "COMPLETED", await firm.explain(run_id)
    tasks = await firm.query("SELECT key, status FROM tasks WHERE run_id = $1 ORDER BY key", run_id)
    assert tasks == [("cli", "DONE"), ("lines", "DONE"), ("words", "DONE")]
    tree = firm.tree(await firm.one("project_id", run_id))
    assert {"textstat/cli.py", "tests/test_acceptance.py", "README.md", ".github/workflows/ci.yml"} <= tree.keys()
    calls = len(firm.server.requests)
    assert await firm.one("spent_usd", run_id) == CALL_USD * calls
    together = await firm.query(
        "SELECT 1 FROM model_calls a JOIN model_calls b USING (run_id, node)"
        " WHERE node = 'dev_work' AND a.task_key = 'words' AND b.task_key = 'lines'"
        " AND a.created_at < b.settled_at AND b.created_at < a.settled_at"
    )
    assert together, "the two independent tasks were never worked on at the same time"
    await firm.check()


async def test_a_token_limit_stops_the_run_short_of_it_and_a_higher_one_lets_it_go_on(
    hire: Callable[..., Firm], sessions: Sessions
) -> None:
    firm = hire()
    limit = 13_000
    run_id = await firm.begin(budget={"tokens": limit})
    firm.start()
    await firm.ended(run_id)
    assert await firm.one("status", run_id) == "STOPPED_BUDGET", await firm.explain(run_id)
    spent = await firm.one("spent_tokens_input + spent_tokens_output", run_id)
    assert 0 < spent <= limit
    assert spent == 500 * len(firm.server.requests)
    assert (await firm.one("final_report", run_id)) is not None
    await firm.check()
    async with sessions.begin() as session:
        await runs.retry(session, run_id, by="ada", limits=runs.Limits(tokens=10_000_000))
    await firm.ended(run_id)
    assert await firm.one("status", run_id) == "COMPLETED", await firm.explain(run_id)
    assert await firm.one("spent_tokens_input + spent_tokens_output", run_id) == 500 * len(firm.server.requests)


async def test_a_run_paused_in_the_middle_of_a_node_goes_on_after_its_worker_died(
    hire: Callable[..., Firm], sessions: Sessions
) -> None:
    firm = hire(SmallCompany(delay=0.3))
    run_id = await firm.begin()
    worker = firm.start()
    await firm.until(lambda: len(firm.server.requests) >= 5)
    async with sessions.begin() as session:
        await runs.pause(session, run_id, by="ada")
    await firm.becomes(run_id, "PAUSED")
    asked = len(firm.server.requests)
    worker.kill()
    await firm.died(worker)
    await asyncio.sleep(1)
    assert len(firm.server.requests) == asked, "a paused run went on asking"
    async with sessions.begin() as session:
        await runs.resume(session, run_id, by="ada")
    firm.start()
    await firm.ended(run_id)
    assert await firm.one("status", run_id) == "COMPLETED", await firm.explain(run_id)
    assert await firm.one("spent_usd", run_id) == CALL_USD * len(firm.server.requests)
    await firm.check()


async def test_a_run_is_stopped_in_the_middle_of_a_model_call(hire: Callable[..., Firm], sessions: Sessions) -> None:
    firm = hire(SmallCompany(delay=120))
    run_id = await firm.begin()
    firm.start()
    await firm.until(lambda: len(firm.server.requests) >= 1)
    async with sessions.begin() as session:
        await runs.stop(session, run_id, by="ada")
    await asyncio.wait_for(firm.ended(run_id), 60)
    assert await firm.one("status", run_id) == "STOPPED_USER", await firm.explain(run_id)
    await firm.check()


async def test_a_credential_in_the_code_stops_the_run_at_the_security_gate(hire: Callable[..., Firm]) -> None:
    firm = hire(SmallCompany(leaks=True))
    run_id = await firm.begin(security={"max_iterations": 1})
    firm.start()
    await firm.ended(run_id)
    assert await firm.one("status", run_id) == "STOPPED_SECURITY", await firm.explain(run_id)
    assert await firm.one("stop_reason", run_id) == "security"
    found = await firm.query("SELECT path, status FROM findings WHERE run_id = $1 AND source = 'security'", run_id)
    assert ("textstat/words.py", "open") in found
    await firm.check()
