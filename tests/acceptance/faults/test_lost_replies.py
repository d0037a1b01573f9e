"""A write was committed and its caller sees an error: every write of the engine, and nothing is done twice or lost."""

from __future__ import annotations

import ast
import asyncio
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy.exc import DBAPIError, InterfaceError

from backend.adapters.db import calls, commit
from backend.adapters.db.engine import connect, sessions_of, transaction
from backend.engine.claiming import claim
from backend.engine.garbage import Garbage
from backend.engine.prompts import Library
from backend.engine.reaper import Reaper
from backend.engine.repair import Clinic
from backend.engine.taking import Taker
from backend.operations import questions, runs
from backend.settings import RetentionSettings
from tests.acceptance.faults import numbers
from tests.acceptance.faults.conftest import ROOT, Crew
from tests.acceptance.faults.nursery import Nursery
from tests.acceptance.faults.proxy import Proxy
from tests.integration.engine.conftest import RecordingBell
from tests.patience import PATIENCE

TIGHT = {"budget": {"tokens": 20_000, "on_exceed": "pause"}}
CHEAPER = {"budget": {"usd": "0.000001", "on_exceed": "degrade", "degrade_to": "cheaper"}}


@dataclass(frozen=True)
class Case:
    """A run, and what stands in the transaction whose reply it does not get."""

    marks: tuple[bytes, ...]
    brief: str = "go"
    without: tuple[bytes, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    of_anybody: bool = False
    """Whether the transaction may be any run's: who shares a statement with whom is chance."""


_HOLD = b"lease_expires_at = CASE WHEN"
WRITES = {
    "taking._take_together": Case((b"FOR NO KEY UPDATE OF r, p SKIP LOCKED",), of_anybody=True),
    "prompts.pin": Case((b"INSERT INTO prompts",), of_anybody=True),
    "claims.release": Case((_HOLD,), without=(b"INSERT INTO events",)),
    "claims.pause": Case((_HOLD, b"run.paused"), "pause"),
    "claims.wait": Case((_HOLD, b"run.waiting"), "a question"),
    "claims.end": Case((_HOLD, b"run.failed"), "unusable"),
    "claims.pause at a limit": Case((_HOLD, b"budget.exceeded"), config=TIGHT),
    "claims.tell": Case((b"budget.degraded",), config=CHEAPER),
    "calls.reserve": Case((b"limits AS (",)),
    "calls.settle": Case((b"beside AS (",)),
    "calls.note": Case((b"FROM fence WHERE NOT EXISTS (SELECT FROM events",)),
    "commit.save_writes": Case((b"INSERT INTO checkpoint_writes",)),
    "commit.save_rows": Case((b"BEGIN", b"INSERT INTO checkpoint_writes")),
    "commit.save_checkpoint": Case((b"FROM fence ON CONFLICT DO NOTHING RETURNING 1",)),
    "commit.save_next": Case((b"FROM given g WHERE",), of_anybody=True),
    "commit.save_next of several runs": Case((b"FROM free g WHERE",), of_anybody=True),
}
"""The writes of a worker, each as the transaction that it is."""

REAPED = {
    "reaper._each past due": b"question.expired",
    "reaper._each answered": b"UPDATE project_runs",
    "reaper._each to stop": b"run.stopped_user",
}

CLAIMED = {
    "claiming._put_in_order": b"INSERT INTO budgets",
    "claiming._refuse": b"config_invalid",
    "claiming._bury_if_poisoned": b"INSERT INTO dead_letters",
}
"""What only runs with something particular need when they are taken up."""

ALONE = {
    "taking._take_alone": b"WITH taken AS (UPDATE project_runs",
    "taking._PAST": b"SELECT coalesce((SELECT jsonb_object",
}
"""What is asked only for a run whose row somebody holds."""

OPERATED = {"repair._apply": b"project.changed", "garbage._delete": b"DELETE FROM projects"}
"""What people have done by `company doctor --repair` and `company gc`."""


def _transactions_of(module: str) -> set[str]:
    """The functions of a module of the engine that commit something: in a transaction, or in a statement of its own."""
    tree = ast.parse((ROOT / "backend" / "engine" / f"{module}.py").read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef)]
    commits = ("transaction(", "(_ALONE,", "(_TOGETHER,", ", _PIN,")
    return {
        f"{module}.{function.name}" for function in functions if any(one in ast.unparse(function) for one in commits)
    }


def test_every_write_of_the_engine_loses_a_reply() -> None:
    found = {f"calls.{name}" for name, made in vars(calls).items() if callable(made) and name.islower()}
    found -= {name for name in found if name.startswith("calls._")}
    found -= {"calls.dataclass"}
    found |= {f"commit.{name}" for name in commit.__all__ if name.startswith("save_")}
    for path in (ROOT / "backend" / "engine").glob("*.py"):
        found |= _transactions_of(path.stem)
    assert found == {name.partition(" ")[0] for name in (*WRITES, *REAPED, *CLAIMED, *list(ALONE)[:1], *OPERATED)}


_ASKED = (
    "SELECT q.id, q.kind FROM questions q JOIN project_runs r ON r.id = q.run_id"
    " WHERE q.status = 'OPEN' AND r.status IN ('PAUSED', 'WAITING')"
)


async def _look_after(crew: Crew) -> None:
    """Be the people: resume what is paused and answer what is asked, until all runs have ended."""
    bell = RecordingBell()
    async with asyncio.timeout(PATIENCE):
        while going := await crew.query("SELECT id, status, stop_reason FROM project_runs WHERE ended_at IS NULL"):
            for question_id, kind in await crew.query(_ASKED):
                said = "1000000 tokens" if kind == "budget" else "blue"
                async with transaction(crew.sessions, bell) as session:
                    await questions.answer(session, question_id, said, by="ada")
            for run_id, status, reason in going:
                if status == "PAUSED" and reason == "paused_by_person":
                    async with transaction(crew.sessions, bell) as session:
                        await runs.resume(session, run_id, by="ada")
            await asyncio.sleep(0.2)


async def _begin(crew: Crew, case: Case) -> UUID:
    run_id = await crew.run(case.brief, **case.config)
    if case.brief == "pause":
        async with transaction(crew.sessions, RecordingBell()) as session:
            await runs.pause(session, run_id, by="ada")
    return run_id


_SAID_ONCE = (
    "SELECT run_id, type, payload ->> 'key' AS key, count(*) FROM events WHERE type IN ('run.created', 'run.paused',"
    " 'run.waiting', 'run.failed', 'run.completed', 'question.asked', 'question.answered', 'budget.exceeded')"
    " GROUP BY 1, 2, 3 HAVING count(*) > 1"
)


async def test_a_worker_whose_writes_succeed_and_seem_to_fail_repeats_and_loses_nothing(
    crew: Crew, nursery: Nursery
) -> None:
    async with Proxy(crew.database_url) as proxy:
        made = {name: await _begin(crew, case) for name, case in WRITES.items()}
        calm = {name: await _begin(crew, case) for name, case in WRITES.items() if name in _KINDS}
        losses = {
            name: proxy.lose(*case.marks, *([] if case.of_anybody else [made[name].bytes]), without=case.without)
            for name, case in WRITES.items()
        }
        # No run is over before its first slice is: that it is given back is one of the writes.
        crew.pace = 0.4
        slices = {"COMPANY_ENGINE__SLICE_SECONDS": "2", "COMPANY_ENGINE__LEASE_SECONDS": "4"}
        nursery.start(crew.environment | slices | {"DATABASE_URL": proxy.url})
        await _look_after(crew)
        nursery.clear()
    assert {name: loss.happened for name, loss in losses.items()} == dict.fromkeys(WRITES, 1)
    ends = dict(await crew.query("SELECT id, status FROM project_runs"))
    assert {ends[made[name]] for name in WRITES if "unusable" not in WRITES[name].brief} == {"COMPLETED"}, crew.log()
    await crew.check()
    cut = (await crew.query("SELECT count(*) FROM model_calls WHERE status = 'failed'"))[0][0]
    lost = sum(loss.happened for loss in losses.values())
    numbers.report("reply lost: worker", lost, len(WRITES), "writes", calls_cut=cut)
    assert await crew.query(_SAID_ONCE) == []
    stories = {WRITES[name].brief: await crew.story(run_id) for name, run_id in calm.items()}
    for name, run_id in made.items():
        assert await crew.story(run_id) == stories[WRITES[name].brief], name
    assert sum(crew.asked.values()) <= len(await crew.query("SELECT 1 FROM model_calls WHERE status = 'done'")) + cut


_KINDS = ("taking._take_together", "claims.pause", "claims.wait", "claims.end")
"""One of each kind of run, which nothing happens to, to compare with."""


READS = {
    "reading.LATEST": b"LEFT JOIN project_runs r ON r.id = c.thread_id",
    "reading._VALUES": b"SELECT number, channel_values FROM checkpoints",
    "journal._JOURNAL": b"jsonb_agg(jsonb_build_array(request_hash",
}
"""What a worker asks of a run's past."""


async def test_a_worker_whose_questions_to_the_database_get_no_answer_asks_again(crew: Crew, nursery: Nursery) -> None:
    async with Proxy(crew.database_url) as proxy:
        made = {name: await crew.run("a question and an interrupt") for name in ("nothing", *READS)}
        losses = {name: proxy.lose(mark, made[name].bytes) for name, mark in READS.items()}
        nursery.start(crew.environment | {"DATABASE_URL": proxy.url})
        await _look_after(crew)
        nursery.clear()
    assert {name: loss.happened for name, loss in losses.items()} == dict.fromkeys(READS, 1)
    numbers.report("reply lost: reads", len(losses), len(READS), "reads", runs=len(made))
    assert set(await crew.query("SELECT status FROM project_runs")) == {("COMPLETED",)}, crew.log()
    await crew.check()
    stories = {name: await crew.story(run_id) for name, run_id in made.items()}
    assert all(story == stories["nothing"] for story in stories.values())
    assert await crew.query("SELECT 1 FROM model_calls WHERE status <> 'done'") == []


@pytest.fixture
async def reaped(crew: Crew) -> dict[str, UUID]:
    """Runs that the reaper has something to do for."""
    made = {name: await crew.run() for name in REAPED}
    due, answered, abandoned = made.values()
    await crew.query("UPDATE project_runs SET status = 'RUNNING', started_at = now(), lease_epoch = 1")
    for run_id in (due, answered):
        await crew.query("UPDATE project_runs SET status = 'WAITING', claims = 0 WHERE id = $1", run_id)
    await crew.query("UPDATE project_runs SET requested = 'stop' WHERE id = $1", abandoned)
    await crew.query("UPDATE projects SET status = 'RUNNING'")
    await crew.query(
        "INSERT INTO questions (id, tenant_id, run_id, key, kind, asked_by, text, options, on_expiry, due_at)"
        " SELECT gen_random_uuid(), tenant_id, id, 'k', 'clarification', 'pm', 'Which?', '[]', 'stop', now()"
        " FROM project_runs WHERE id = $1",
        due,
    )
    return made


async def test_a_reaper_whose_writes_succeed_and_seem_to_fail_does_everything_once(
    crew: Crew, reaped: dict[str, UUID]
) -> None:
    async with Proxy(crew.database_url) as proxy:
        engine = connect(proxy.url)
        reaper = Reaper(sessions_of(engine), RecordingBell(), every=60)
        losses = {name: proxy.lose(mark, reaped[name].bytes) for name, mark in REAPED.items()}
        failed = 0
        for _ in range(2 * len(REAPED)):
            try:
                await reaper.reap()
            except (OSError, DBAPIError, InterfaceError):
                failed += 1
        await engine.dispose()
    assert {name: loss.happened for name, loss in losses.items()} == dict.fromkeys(REAPED, 1)
    numbers.report("reply lost: reaper", failed, len(REAPED), "writes", runs=len(reaped))
    ends = await crew.query("SELECT status, count(*) FROM project_runs GROUP BY 1 ORDER BY 1")
    assert ends == [("QUEUED", 1), ("STOPPED_USER", 2)]
    told = await crew.query("SELECT type, count(*) FROM events GROUP BY 1 ORDER BY 1")
    assert told == [("question.expired", 1), ("run.stopped_user", 2)]


async def test_what_a_claim_does_beside_taking_the_run_is_done_once_whatever_its_caller_sees(crew: Crew) -> None:
    capped = await crew.run(budget={"roles": {"developer": {"tokens": 100_000}}})
    unreadable, poisoned = await crew.run(), await crew.run()
    await crew.query("ALTER TABLE project_runs DISABLE TRIGGER guard_snapshot")
    await crew.query("UPDATE project_runs SET config_snapshot = '{\"graph\": 7}' WHERE id = $1", unreadable)
    await crew.query("ALTER TABLE project_runs ENABLE TRIGGER guard_snapshot")
    await crew.query("UPDATE project_runs SET status = 'RUNNING', claims = 5, lease_epoch = 5 WHERE id = $1", poisoned)
    made = dict(zip(CLAIMED, (capped, unreadable, poisoned), strict=True))
    failed = 0
    async with Proxy(crew.database_url) as proxy, asyncpg.create_pool(proxy.url, min_size=1) as pool:
        engine = connect(proxy.url)
        who: dict[str, Any] = {"owner": "test", "lease_seconds": 0.05, "max_claims": 5, "library": Library(pool)}
        losses = {name: proxy.lose(mark, made[name].bytes) for name, mark in CLAIMED.items()}
        for run_id in (*made.values(), *made.values()):
            await asyncio.sleep(0.1)
            try:
                taken = await claim(sessions_of(engine), pool, RecordingBell(), run_id, **who)
            except (OSError, DBAPIError, InterfaceError):
                failed += 1
            else:
                assert (taken is not None) == (run_id == capped)
        await engine.dispose()
    assert {name: loss.happened for name, loss in losses.items()} == dict.fromkeys(CLAIMED, 1)
    numbers.report("reply lost: claim", failed, len(CLAIMED), "writes", runs=len(made))
    assert await crew.query("SELECT owner_id, name, limit_tokens FROM budgets") == [(capped, "developer", 100_000)]
    assert await crew.query("SELECT run_id, lease_epoch FROM dead_letters") == [(poisoned, 6)]
    ends = await crew.query("SELECT id, status, stop_reason FROM project_runs WHERE ended_at IS NOT NULL ORDER BY 3")
    assert ends == [(unreadable, "FAILED", "config_invalid"), (poisoned, "FAILED", "poisoned")]
    assert await crew.query("SELECT count(*) FROM events WHERE type = 'run.failed'") == [(2,)]


async def test_a_run_that_is_taken_by_itself_and_seems_not_to_be_is_taken_again(crew: Crew) -> None:
    run_id = await crew.run()
    await crew.query(
        "UPDATE project_runs SET status = 'RUNNING', started_at = now(), lease_epoch = 1, lease_owner = 'gone',"
        " lease_expires_at = now() WHERE id = $1",
        run_id,
    )
    async with Proxy(crew.database_url) as proxy, asyncpg.create_pool(proxy.url, min_size=1) as pool:
        library = Library(pool)
        taker = Taker(pool, owner="test", lease_seconds=0.05, most=5, pins=library.pins)
        losses = {name: proxy.lose(mark, without=(b"WITH due",)) for name, mark in ALONE.items()}
        async with asyncpg.create_pool(crew.database_url, min_size=1) as others:
            for loss in losses.values():
                await asyncio.sleep(0.1)
                async with others.acquire() as holder, holder.transaction():
                    await holder.execute("SELECT FROM project_runs WHERE id = $1 FOR UPDATE", run_id)
                    taking = asyncio.create_task(taker.take(run_id))
                    while not taking.done() and not await others.fetchval(_WAITS):
                        await asyncio.sleep(0.01)
                with pytest.raises(asyncpg.PostgresConnectionError):
                    await taking
                assert loss.happened == 1
        await asyncio.sleep(0.1)
        row = await taker.take(run_id)
    assert row is not None
    assert (row["lease_epoch"], row["claims"], row["answers"]) == (4, 3, "{}")
    numbers.report("reply lost: alone", len(losses), len(ALONE), "replies", claims=row["claims"])
    told = await crew.query("SELECT seq, type FROM events WHERE run_id = $1 ORDER BY seq", run_id)
    assert told == [(1, "run.lease_lost"), *((n, told[n - 1][1]) for n in range(2, 7))]
    assert sorted(kind for _, kind in told) == ["run.lease_lost"] * 3 + ["run.resumed"] * 3


_WAITS = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


async def test_a_repair_and_a_collection_that_succeed_and_seem_to_fail_are_made_again_and_done_once(
    crew: Crew, tmp_path: Path
) -> None:
    wrong, away = [
        (await crew.query("SELECT project_id FROM project_runs WHERE id = $1", await crew.run()))[0][0]
        for _ in OPERATED
    ]
    await crew.query("UPDATE project_runs SET status = 'STOPPED_USER', ended_at = now(), requested = 'none'")
    await crew.query("UPDATE projects SET active_run_id = NULL, spent_usd = 1 WHERE id = $1", wrong)
    await crew.query(
        "UPDATE projects SET active_run_id = NULL, status = 'ARCHIVED', archived_at = now() - interval '60 days'"
        " WHERE id = $1",
        away,
    )
    async with Proxy(crew.database_url) as proxy, asyncpg.create_pool(proxy.url, min_size=1) as pool:
        engine = connect(proxy.url)
        sessions, bell = sessions_of(engine), RecordingBell()
        keep = RetentionSettings(archived_days=30)
        work = (
            partial(Clinic(sessions, bell, tmp_path, grace=60).mend, dry=False),
            partial(Garbage(sessions, pool, bell, tmp_path, keep).collect, dry=False),
        )
        losses = [proxy.lose(mark, one.bytes) for mark, one in zip(OPERATED.values(), (wrong, away), strict=True)]
        failed = 0
        for do in work:
            for _ in range(2):
                try:
                    await do()
                except (OSError, DBAPIError, InterfaceError):
                    failed += 1
        await engine.dispose()
    assert [loss.happened for loss in losses] == [1, 1]
    numbers.report("reply lost: operator", failed, len(OPERATED), "writes", projects=len(OPERATED))
    assert await crew.query("SELECT id, spent_usd FROM projects") == [(wrong, 0)]
    told = await crew.query("SELECT count(*) FROM events WHERE type = 'project.changed' AND project_id = $1", wrong)
    assert told == [(1,)]
