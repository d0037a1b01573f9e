"""`company doctor --repair`: each thing that a rule mends is broken first; looking alone changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from backend.engine.repair import RULES, Clinic, Repaired
from backend.operations import invariants
from tests.integration.engine.conftest import Company

CALL = (
    "INSERT INTO model_calls (run_id, node, visit, ordinal, attempt, role, provider, model, request, request_hash,"
    " reserved_tokens, reserved_usd, lease_epoch, status) SELECT id, 'plan', 9, 1, 1, 'pm', 'openai', 'test-model',"
    " '{}', repeat('0', 64), 100, 0.5, lease_epoch, 'reserved' FROM project_runs; UPDATE project_runs"
    " SET reserved_tokens = 100, reserved_usd = 0.5; "
)
ON_HOLD = (
    "UPDATE project_runs SET status = 'PAUSED', ended_at = NULL, claims = 0; UPDATE projects SET active_run_id = r.id"
)
ON_HOLD += " FROM project_runs r; UPDATE events SET type = 'run.paused' WHERE type = 'run.completed'; "

BREAKS = {
    "reservations": CALL,
    "granted": "UPDATE project_runs SET granted_at = now() - interval '9s', granted_until = now(), granted_budgets ="
    " '{}'",
    "held-seconds": "INSERT INTO budgets (scope, owner_id, name, reserved_seconds) SELECT 'tenant_month', tenant_id,"
    " '2020-01', 9 FROM project_runs",
    "totals": "UPDATE project_runs SET spent_tokens_input = spent_tokens_input + 7, spent_usd = 9",
    "project-totals": "UPDATE projects SET spent_usd = spent_usd + 1",
    "let-go": ON_HOLD + "UPDATE project_runs SET lease_owner = 'gone/1', claims = 3",
    "active": "UPDATE projects SET active_run_id = r.id FROM project_runs r",
    "buried": "UPDATE project_runs SET status = 'FAILED', stop_reason = 'poisoned'; UPDATE events"
    " SET type = 'run.failed' WHERE type = 'run.completed'",
    "answered": ON_HOLD + "UPDATE project_runs SET status = 'WAITING'; UPDATE events SET type = 'run.waiting'"
    " WHERE type = 'run.paused'",
    "doorbells": "UPDATE project_runs SET status = 'QUEUED', ended_at = NULL, queued_at = now() - interval '1 hour';"
    " UPDATE projects SET active_run_id = r.id FROM project_runs r; DELETE FROM events",
}
"""A write for each rule that nothing of ours does, over one run that has completed."""


async def broken(company: Company, tmp_path: Path, name: str) -> tuple[UUID, Clinic]:
    run = await company.run()
    await company.executor.execute(run)
    async with company.sessions.begin() as session:
        await session.execute(text("SET LOCAL session_replication_role = replica"))
        for statement in BREAKS[name].split(";"):
            if statement.strip():
                await (await session.connection()).exec_driver_sql(statement)
    company.bell.rung.clear()
    return run, Clinic(company.sessions, company.bell, tmp_path, grace=2)


async def offences(company: Company) -> set[str]:
    async with company.sessions() as session:
        return {one.name for one in await invariants.check(session) if one.offences}


async def rows(company: Company) -> list[Any]:
    tables = ("projects", "project_runs", "model_calls", "events", "dead_letters", "budgets")
    return [sorted(map(str, await company.pool.fetch(f"SELECT * FROM {table}"))) for table in tables]


def test_every_rule_is_broken_by_a_test() -> None:
    assert [rule.name for rule in RULES] == list(BREAKS)
    assert all(rule.sentence.endswith(".") for rule in RULES)


@pytest.mark.parametrize("name", BREAKS)
async def test_what_is_broken_is_told_and_then_mended(company: Company, tmp_path: Path, name: str) -> None:
    run, clinic = await broken(company, tmp_path, name)
    before = await rows(company)
    looked = await clinic.mend(dry=True)
    assert name in {one.rule for one in looked}
    assert await rows(company) == before
    assert company.bell.rung == []
    mended = await clinic.mend(dry=False)
    assert name in {one.rule for one in mended}
    if name == "doorbells":
        assert company.bell.rung == [run]
        return
    assert await offences(company) <= {"stuck"}
    assert await clinic.left() == []
    assert [one for one in await clinic.mend(dry=False) if one.rule != "doorbells"] == []


async def test_totals_come_from_the_ledger_and_an_event_says_what_they_were(company: Company, tmp_path: Path) -> None:
    run, clinic = await broken(company, tmp_path, "totals")
    summed = await company.pool.fetchrow("SELECT sum(tokens_input) AS tokens, sum(cost_usd) AS usd FROM model_calls")
    await clinic.mend(dry=False)
    row = await company.row(run)
    assert (row["spent_tokens_input"], row["spent_usd"]) == (summed["tokens"], summed["usd"])
    told = json.loads(await company.pool.fetchval("SELECT payload FROM events WHERE type = 'run.repaired'"))
    assert told["before"] == {"spent_tokens_input": str(summed["tokens"] + 7), "spent_usd": "9.000000"}
    assert told["after"] == {"spent_tokens_input": str(summed["tokens"]), "spent_usd": str(summed["usd"])}


async def test_a_call_that_nobody_waits_for_is_booked_at_its_ceiling(company: Company, tmp_path: Path) -> None:
    run, clinic = await broken(company, tmp_path, "reservations")
    before = await company.pool.fetchrow("SELECT sum(cost_usd) AS usd FROM model_calls")
    await clinic.mend(dry=False)
    row = await company.row(run)
    assert (row["reserved_tokens"], row["reserved_usd"]) == (0, 0)
    assert float(row["spent_usd"]) == float(before["usd"]) + 0.5
    assert await company.pool.fetchval("SELECT status FROM model_calls WHERE visit = 9") == "failed"


async def test_worktrees_of_ended_runs_are_removed(company: Company, tmp_path: Path) -> None:
    run, clinic = await broken(company, tmp_path, "active")
    tree = tmp_path / "worktrees" / str(run) / "main"
    tree.mkdir(parents=True)
    assert Repaired("worktrees", str(run), "The worktree of a run that has ended goes.") in await clinic.mend(dry=True)
    assert tree.exists()
    await clinic.mend(dry=False)
    assert not tree.exists()


async def test_a_healthy_company_is_left_as_it_is(company: Company, tmp_path: Path) -> None:
    await company.executor.execute(await company.run())
    before = await rows(company)
    clinic = Clinic(company.sessions, company.bell, tmp_path, grace=2)
    assert await clinic.mend(dry=False) == []
    assert await clinic.left() == []
    assert await rows(company) == before


async def test_what_no_rule_mends_is_left_and_told(company: Company, tmp_path: Path) -> None:
    run = await company.run()
    await company.executor.execute(run)
    async with company.sessions.begin() as session:
        await session.execute(text("SET LOCAL session_replication_role = replica"))
        await session.execute(text("DELETE FROM events WHERE seq = 3"))
    clinic = Clinic(company.sessions, company.bell, tmp_path, grace=2)
    assert await clinic.mend(dry=False) == []
    (sentence,) = [said for said in await clinic.left() if said.startswith("numbers")]
    assert str(run) in sentence
