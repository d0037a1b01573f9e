"""Workers die at every named point, once and twice: the run ends the same, and no call is paid twice."""

from __future__ import annotations

import ast
import asyncio
import signal
from uuid import UUID

import pytest
import redis.asyncio

from backend.adapters.db.engine import transaction
from backend.operations import questions
from tests.acceptance.faults import numbers
from tests.acceptance.faults.conftest import ROOT, Crew
from tests.acceptance.faults.nursery import Nursery
from tests.integration.engine.conftest import RecordingBell
from tests.patience import PATIENCE

CALLS = 16
PARALLEL = 3
SUPERSTEPS = 7
POINTS = {
    "received": ("received", "received"),
    "heard": ("heard", "heard"),
    "claim": ("claim", "claim"),
    "reserve": ("reserve:3", "reserve"),
    "response": ("response:3", "response"),
    "booked": ("booked:3", "booked:2"),
    "writes": ("writes:2", "writes"),
    "transaction": ("transaction", "transaction"),
    "written": ("written:2", "written"),
    "checkpoint": ("checkpoint:2", "checkpoint"),
    "committed": ("committed:2", "committed"),
    "hold": ("hold", "hold"),
    "final": ("final",),
}
"""Each point, as it is armed for the first death and for the second: a doorbell has come, is acknowledged; the run is
claimed; a call is reserved, answered, booked; before, in and after the commit of one of parallel tasks, which lies
between the writes and the checkpoint of its superstep; before and after that checkpoint; before a run is held for a
question; after its end is written, which happens once."""

IN_THE_LAST_NODE = {
    "before its commit": (f"checkpoint:{SUPERSTEPS}", "checkpoint"),
    "after its commit": (f"committed:{SUPERSTEPS}",),
}
CASES = [pytest.param(point, armed, id=point) for point, armed in POINTS.items()]
CASES += [pytest.param(point, armed, id=f"last node {point}") for point, armed in IN_THE_LAST_NODE.items()]
BRIEFS = {"hold": "a question", "writes": "apart", "written": "apart"}
_twins: dict[str, list[tuple[object, ...]]] = {}
"""What runs come to that nothing happens to, by brief."""


async def test_a_run_is_driven_by_a_real_worker(crew: Crew) -> None:
    run_id = await crew.run()
    crew.start()
    await crew.ended(run_id)
    assert await crew.query("SELECT status FROM project_runs") == [("COMPLETED",)], crew.log()
    assert len(crew.server.requests) == CALLS
    await crew.check()


def named_points() -> set[str]:
    """The points that the product's code names."""
    found = set()
    texts = [path.read_text() for path in (ROOT / "backend").rglob("*.py")]
    for text in (text for text in texts if "crash_point(" in text):
        for call in ast.walk(ast.parse(text)):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "crash_point":
                assert isinstance(call.args[0], ast.Constant)
                found.add(str(call.args[0].value))
    return found


def test_every_point_that_the_code_names_is_died_at() -> None:
    assert named_points() == set(POINTS)


async def _answer(crew: Crew) -> None:
    """Answer the question of a run, once it is asked."""
    while not (found := await crew.query("SELECT id FROM questions WHERE status = 'OPEN'")):
        await asyncio.sleep(0.05)
    async with transaction(crew.sessions, RecordingBell()) as session:
        await questions.answer(session, found[0][0], "blue", by="ada")


async def _finish(crew: Crew, run_id: UUID, brief: str) -> None:
    if "question" in brief:
        await _answer(crew)
    await crew.ended(run_id)


async def _twin_of(crew: Crew, brief: str) -> list[tuple[object, ...]]:
    if brief not in _twins:
        twin = await crew.run(brief)
        await _finish(crew, twin, brief)
        _twins[brief] = await crew.story(twin)
    return _twins[brief]


@pytest.mark.parametrize("times", [1, 2] if numbers.FULL else [2])
@pytest.mark.parametrize(("point", "armed"), CASES)
async def test_a_worker_that_dies_at_a_named_point_loses_and_repeats_nothing(
    crew: Crew, nursery: Nursery, point: str, armed: tuple[str, ...], times: int
) -> None:
    brief = BRIEFS.get(point, "go")
    run_id, deaths = await crew.run(brief), 0
    for place in armed[:times]:
        await nursery.gone(nursery.start(crew.environment | {"COMPANY_ENGINE__CRASH_AT": place}))
        deaths += 1
        await crew.let_leases_end()
    nursery.start(crew.environment)
    await _finish(crew, run_id, brief)
    assert await crew.query("SELECT status FROM project_runs") == [("COMPLETED",)], crew.log()
    await crew.check()
    # Only calls that were in flight when a worker died may be asked again, and the ceiling of each is booked.
    cut = (await crew.query("SELECT count(*) FROM model_calls WHERE status = 'failed'"))[0][0]
    assert cut <= PARALLEL * deaths
    assert sum(crew.asked.values()) <= CALLS + cut
    assert await crew.story(run_id) == await _twin_of(crew, brief)
    where = point if point in POINTS else f"last node, {point}"
    numbers.report(f"kill at: {where}", deaths, min(times, len(armed)), "kills", graph="chain", calls_cut=cut)


async def test_a_worker_that_is_asked_to_leave_gives_its_runs_back(crew: Crew) -> None:
    run_id = await crew.run("hang")
    worker = crew.start()
    async with asyncio.timeout(PATIENCE):
        while len(crew.server.requests) < 2:
            await asyncio.sleep(0.05)
    worker.send_signal(signal.SIGTERM)
    await crew.died(worker)
    assert worker.returncode == 0, crew.log()
    assert await crew.query("SELECT status, lease_owner FROM project_runs") == [("RUNNING", None)]
    await crew.query("UPDATE project_runs SET brief = 'go'")
    await crew.query("UPDATE project_runs SET requested = 'stop'")
    crew.start()
    await crew.ended(run_id)
    assert await crew.query("SELECT status FROM project_runs") == [("STOPPED_USER",)]
    await crew.check()


async def test_a_wiped_broker_costs_a_delay_and_nothing_else(crew: Crew, redis_url: str) -> None:
    wanted, wiped, made = numbers.of(100), 0, list[UUID]()
    # Nobody dies here: a lease that runs out on a busy machine would repeat a call as it should.
    patient = {"COMPANY_ENGINE__LEASE_SECONDS": "30"}
    crew.start(**patient)
    crew.start(**patient)
    async with redis.asyncio.Redis.from_url(redis_url) as broker:
        while wiped < wanted:
            made += await crew.never_idle()
            await broker.flushall()
            wiped += 1
            await asyncio.sleep(0.3)
    await crew.ended(*made)
    numbers.report("broker wiped", wiped, wanted, "wipes", runs=len(made))
    assert set(await crew.query("SELECT status FROM project_runs")) == {("COMPLETED",)}, crew.log()
    assert len(crew.server.requests) == CALLS * len(made)
    await crew.check()


async def test_a_frozen_worker_that_wakes_up_writes_nothing(crew: Crew) -> None:
    run_id = await crew.run()
    zombie = crew.start()
    async with asyncio.timeout(PATIENCE):
        while len(crew.server.requests) < 3:
            await asyncio.sleep(0.01)
    zombie.send_signal(signal.SIGSTOP)
    crew.start()
    await crew.ended(run_id)
    before = await crew.query("SELECT event_seq, lease_epoch FROM project_runs")
    zombie.send_signal(signal.SIGCONT)
    await asyncio.sleep(3)
    assert zombie.poll() is None
    assert await crew.query("SELECT event_seq, lease_epoch FROM project_runs") == before
    await crew.check()
