"""Every invariant holds in health, and names what breaks it: no sentence of `company doctor --deep` is only words."""

from __future__ import annotations

import re
from decimal import Decimal

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db.tables import Budget, Event, ModelCall, Project, ProjectRun, Task, TaskComment
from backend.domain.run import MOVES
from backend.operations import invariants
from tests.conftest import MakeRun

HISTORY = (
    ("run.created", {}),
    ("run.started", {"epoch": 1, "owner": "host/1"}),
    ("task.created", {"key": "a", "status": "READY"}),
    ("node.finished", {"node": "plan", "visit": 1}),
    ("task.moved", {"key": "a", "from": "READY", "to": "IN_PROGRESS"}),
    ("run.resumed", {"epoch": 2, "owner": "host/1"}),
)


@pytest.fixture
async def run(session: AsyncSession, make_run: MakeRun) -> ProjectRun:
    """A run on its way, with a row of everything that the invariants look at."""
    run = await make_run(
        session, status="RUNNING", lease_epoch=2, lease_owner="host/1", claims=1, event_seq=len(HISTORY),
        spent_tokens_input=60, spent_tokens_output=20, spent_usd=1, reserved_tokens=100, reserved_usd=2,
    )  # fmt: skip
    await session.execute(text("UPDATE project_runs SET lease_expires_at = clock_timestamp() + interval '1 hour'"))
    project = await session.get_one(Project, run.project_id)
    project.active_run_id, project.spent_usd = run.id, Decimal(1)
    for seq, (event_type, payload) in enumerate(HISTORY, 1):
        session.add(Event(run_id=run.id, seq=seq, type=event_type, payload=payload, source="engine",
                          instance="host/1"))  # fmt: skip
        await session.flush()
    session.add(
        Task(run_id=run.id, key="a", title="A", kind="feature", assigned_role="developer", status="IN_PROGRESS")
    )
    session.add(TaskComment(run_id=run.id, author_name="pm", comment_type="plan", body="So.", node="plan", visit=1))
    asked = {"run_id": run.id, "node": "plan", "visit": 1, "role": "pm", "provider": "p", "model": "m", "request": {}}
    asked |= {"request_hash": "0" * 64, "reserved_tokens": 100, "reserved_usd": 2, "lease_epoch": 2}
    session.add(ModelCall(**asked, ordinal=1, attempt=1, status="done", tokens_input=60, tokens_output=20, cost_usd=1,
                          settled_at=run.created_at))  # fmt: skip
    session.add(ModelCall(**asked, ordinal=2, attempt=1, status="reserved"))
    for scope, owner, name in (("run_role", run.id, "pm"), ("tenant_month", run.tenant_id, "2026-11")):
        session.add(Budget(scope=scope, owner_id=owner, name=name, limit_tokens=1000, limit_usd=10, spent_tokens=80,
                           spent_usd=1, reserved_tokens=100, reserved_usd=2))  # fmt: skip
    await session.flush()
    return run


BREAKS = {
    "ended": "UPDATE project_runs SET status = 'COMPLETED'",
    "claimable": "UPDATE project_runs SET status = 'QUEUED'",
    "stuck": "UPDATE project_runs SET lease_expires_at = now() - interval '1 hour'",
    "let-go": "UPDATE project_runs SET ended_at = now()",
    "answerable": "WITH asked AS (INSERT INTO questions (id, tenant_id, run_id, key, kind, asked_by, text, options,"
    " on_expiry) SELECT gen_random_uuid(), tenant_id, id, 'k', 'clarification', 'pm', 'Which?', '[]', 'stop'"
    " FROM project_runs) UPDATE project_runs SET status = 'COMPLETED', ended_at = now()",
    "active": "UPDATE projects SET active_run_id = NULL",
    "buried": "UPDATE project_runs SET status = 'FAILED', stop_reason = 'poisoned'",
    "visits": "INSERT INTO events (tenant_id, run_id, seq, type, source, payload)"
    " SELECT tenant_id, run_id, 7, type, source, payload FROM events WHERE type = 'node.finished'",
    "comments": "INSERT INTO task_comments (tenant_id, run_id, author_name, comment_type, body, node, visit)"
    " SELECT tenant_id, run_id, author_name, comment_type, body, node, visit FROM task_comments",
    "replies": "UPDATE model_calls SET status = 'done', settled_at = now(), ordinal = 1, attempt = 2 WHERE ordinal = 2",
    "totals": "UPDATE project_runs SET spent_tokens_input = 61",
    "project-totals": "UPDATE projects SET spent_usd = 2",
    "run-limits": "UPDATE project_runs SET limit_tokens = 179",
    "role-limits": "UPDATE budgets SET limit_usd = 2.5 WHERE scope = 'run_role'",
    "shared-limits": "UPDATE budgets SET limit_usd = 2.5 WHERE scope = 'tenant_month'",
    "granted": "UPDATE project_runs SET lease_owner = NULL, granted_at = now(), granted_until = now(),"
    " granted_budgets = '{}'",
    "held-seconds": "UPDATE budgets SET reserved_seconds = 1 WHERE scope = 'tenant_month'",
    "numbers": "UPDATE events SET seq = 9 WHERE seq = 6",
    "moves": "UPDATE events SET type = 'run.waiting' WHERE seq = 4",
    "end-told": "UPDATE events SET type = 'run.completed' WHERE seq = 6",
    "task-moves": "UPDATE tasks SET status = 'DONE'",
    "epochs": "UPDATE events SET payload = '{\"epoch\": 1}' WHERE seq = 6",
    "fenced": "UPDATE events SET instance = 'host/2' WHERE seq = 4",
    "begun": "UPDATE model_calls SET lease_epoch = 3 WHERE ordinal = 1",
    "reservations": "UPDATE model_calls SET lease_epoch = 1 WHERE ordinal = 2",
    "prompts": 'UPDATE project_runs SET prompts = \'{"qa": "0"}\'',
}
"""A write for each invariant that nothing of ours does, and that breaks it (and maybe others)."""

MORE_BREAKS = [
    ("ended", "UPDATE project_runs SET ended_at = now()"),
    ("let-go", "UPDATE project_runs SET ended_at = now(), reserved_tokens = 0, reserved_usd = 0"),
    ("active", "UPDATE project_runs SET status = 'COMPLETED', ended_at = now()"),
    ("run-limits", "UPDATE project_runs SET limit_usd = 2.9"),
    ("role-limits", "UPDATE budgets SET limit_tokens = 179 WHERE scope = 'run_role'"),
    ("shared-limits", "UPDATE budgets SET limit_tokens = 179 WHERE scope = 'tenant_month'"),
    ("role-limits", "UPDATE budgets SET limit_seconds = 9, spent_seconds = 8, reserved_seconds = 2"),
    ("shared-limits", "UPDATE budgets SET limit_seconds = 9, spent_seconds = 8, reserved_seconds = 2"),
    (
        "granted",
        "UPDATE project_runs SET status = 'QUEUED', granted_at = now(), granted_until = now(), granted_budgets = '{}'",
    ),
    ("numbers", "UPDATE project_runs SET event_seq = 7"),
    ("numbers", "DELETE FROM events WHERE seq = 3"),
    ("numbers", "DELETE FROM events"),
    ("moves", "UPDATE events SET type = 'run.created' WHERE seq = 4"),
    ("moves", "UPDATE events SET type = 'run.paused' WHERE seq = 5"),
    ("moves", "UPDATE events SET type = 'run.failed' WHERE seq = 5"),
    ("moves", "UPDATE events SET type = 'run.completed' WHERE seq = 2"),
    ("end-told", "UPDATE project_runs SET status = 'FAILED', ended_at = now()"),
    ("task-moves", 'UPDATE events SET payload = payload || \'{"from": "BLOCKED"}\' WHERE seq = 5'),
    ("task-moves", "DELETE FROM tasks"),
    ("fenced", 'UPDATE events SET payload = \'{"epoch": 1, "owner": "host/2"}\' WHERE seq = 2'),
    ("epochs", "UPDATE project_runs SET lease_epoch = 1"),
    (
        "prompts",
        "ALTER TABLE prompts DROP CONSTRAINT ck_prompts_content; INSERT INTO prompts (sha256, name, text)"
        " VALUES ('0', 'qa', 'Other.'); UPDATE project_runs SET prompts = '{\"qa\": \"0\"}'",
    ),
]


async def broken(session: AsyncSession, statement: str) -> dict[str, invariants.Checked]:
    """What is broken after writes that no trigger saw."""
    await session.execute(text("SET LOCAL session_replication_role = replica"))
    for part in statement.split("; "):
        await (await session.connection()).exec_driver_sql(part)
    return {checked.name: checked for checked in await invariants.check(session) if checked.offences}


async def test_a_healthy_database_breaks_no_invariant(session: AsyncSession, run: ProjectRun) -> None:
    assert await broken(session, "SELECT 1") == {}


def test_every_invariant_has_a_name_a_sentence_and_a_write_that_breaks_it() -> None:
    listed = invariants.listed()
    assert [invariant.name for invariant in listed] == list(BREAKS)
    assert all(invariant.sentence.endswith(".") for invariant in listed)
    assert all(invariant.statement.startswith(("SELECT", "WITH")) for invariant in listed)


def test_the_moves_of_a_run_are_those_of_the_domain() -> None:
    statement = next(invariant.statement for invariant in invariants.listed() if invariant.name == "moves")
    told = set(
        re.findall(r"\('([A-Z_]+)', '([A-Z_]+)'\)", statement.partition("NOT IN")[2].partition("AND NOT (was")[0])
    )
    # Events do not tell of the way from a hold into the queue, and a run may go from worker to worker.
    legal = {(str(old), str(new)) for old, news in MOVES.items() for new in news}
    assert told == legal - {("PAUSED", "QUEUED"), ("WAITING", "QUEUED")} | {("RUNNING", "RUNNING")}


@pytest.mark.parametrize(("name", "statement"), [*BREAKS.items(), *MORE_BREAKS])
async def test_what_breaks_an_invariant_is_named(
    session: AsyncSession, run: ProjectRun, name: str, statement: str
) -> None:
    found = await broken(session, statement)
    assert name in found
    told = " ".join(str(offence) for offence in found[name].offences)
    assert any(str(known) in told for known in (run.id, run.project_id, run.tenant_id))


async def test_what_a_provider_billed_beyond_its_reservation_is_no_offence(
    session: AsyncSession, run: ProjectRun
) -> None:
    await broken(session, "UPDATE budgets SET limit_usd = 2.5 WHERE scope = 'run_role'")
    await broken(session, "UPDATE project_runs SET limit_usd = 2.9")
    assert await broken(session, "UPDATE events SET type = 'budget.excess_billed' WHERE type = 'node.finished'") == {}


@pytest.mark.parametrize("hold", ["run.paused", "run.waiting"])
@pytest.mark.parametrize("said", ["run.resume_requested", "question.answered", "question.expired"])
async def test_a_run_on_hold_goes_on_by_what_somebody_said(
    session: AsyncSession, run: ProjectRun, hold: str, said: str
) -> None:
    await broken(session, f"UPDATE events SET type = '{said}' WHERE seq = 5")
    found = await broken(session, f"UPDATE events SET type = '{hold}' WHERE seq = 4")
    assert "moves" not in found


async def test_no_more_offences_are_told_than_a_person_reads(session: AsyncSession, run: ProjectRun) -> None:
    copies = (
        "INSERT INTO task_comments (tenant_id, run_id, author_name, comment_type, body, node, visit) SELECT tenant_id,"
        " run_id, author_name, comment_type, body, node, n / 2 FROM task_comments, generate_series(100, 199) n"
    )
    found = await broken(session, copies)
    assert len(found["comments"].offences) == invariants.MOST
