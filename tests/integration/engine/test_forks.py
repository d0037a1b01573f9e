"""Forks, driven by a real engine: another run goes on from a checkpoint, and the old one stays as it was."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select

from backend.adapters.db import forking
from backend.adapters.db.tables import ProjectRun, Question
from backend.engine.loader import Graphs
from backend.errors import Conflict, Invalid, NotFound, Unavailable
from backend.operations import forks, questions, runs
from tests.acceptance.graphs import CHAIN
from tests.integration.engine.conftest import Company


async def no_branch(project_id: UUID, branch: str, commit: str) -> bool:
    return False


PLACE = forks.Place(Graphs([CHAIN]).find, lambda config, brief: [], no_branch)


async def fork(company: Company, run_id: UUID, at: UUID | None = None, **patch: Any) -> UUID:
    made: ProjectRun = await company.operate(forks.fork, run_id, checkpoint_id=at, patch=patch, place=PLACE, by="ada")
    return made.id


async def checkpoints(company: Company, run_id: UUID) -> list[UUID]:
    async with company.sessions() as session:
        return await forking.ids_of(session, run_id)


async def whole(company: Company, run_id: UUID) -> list[Any]:
    """Every row of a run as text."""
    tables = ("tasks", "task_comments", "findings", "questions", "model_calls", "events", "artifacts")
    union = " UNION ALL ".join(f"SELECT t::text FROM {name} t WHERE run_id = $1" for name in tables)
    run = " UNION ALL SELECT r::text FROM project_runs r WHERE id = $1"
    kept = " UNION ALL SELECT c::text FROM checkpoints c WHERE thread_id = $1 ORDER BY 1"
    return [row[0] for row in await company.pool.fetch(union + run + kept, run_id)]


async def test_a_fork_from_any_checkpoint_comes_to_the_same_end_and_pays_only_for_what_follows(
    company: Company,
) -> None:
    parent = await company.run()
    await company.executor.execute(parent)
    before = await whole(company, parent)
    ended, paid = await company.row(parent), len(company.transport.calls)
    previous = paid + 1
    for at in reversed((await checkpoints(company, parent))[1:]):
        company.transport.calls.clear()
        made = await fork(company, parent, at)
        await company.executor.execute(made)
        row = await company.row(made)
        assert row["status"] == "COMPLETED", row["error"]
        assert row["final_report"] == ended["final_report"]
        assert (row["parent_run_id"], row["parent_checkpoint_id"]) == (parent, str(at))
        calls = len(company.transport.calls)
        assert calls == row["model_calls"] <= previous
        previous = calls
        tasks = await company.pool.fetch("SELECT key, status FROM tasks WHERE run_id = $1 ORDER BY 1", made)
        assert [tuple(task) for task in tasks] == [("a", "DONE"), ("b", "DONE"), ("c", "DONE")]
        await company.check(made)
    assert previous == 0, "the last checkpoint before the end needs no call"
    assert await whole(company, parent) == before


async def test_a_fork_sees_its_tasks_as_they_were_at_its_checkpoint(company: Company) -> None:
    parent = await company.run()
    await company.executor.execute(parent)
    seen = []
    for at in reversed((await checkpoints(company, parent))[1:]):
        made = await fork(company, parent, at)
        rows = await company.pool.fetch("SELECT status FROM tasks WHERE run_id = $1", made)
        seen.append({row["status"] for row in rows})
        await company.operate(runs.stop, made, by="ada")
    stages = [found for at, found in enumerate(seen) if at == 0 or found != seen[at - 1]]
    assert stages[-3:] == [{"CREATED"}, {"IN_PROGRESS"}, {"DONE"}]


async def test_a_fork_of_a_fork_goes_on_too(company: Company) -> None:
    parent = await company.run()
    await company.executor.execute(parent)
    middle = (await checkpoints(company, parent))[3]
    first = await fork(company, parent, middle)
    await company.executor.execute(first)
    second = await fork(company, first, middle)
    await company.executor.execute(second)
    assert (await company.row(second))["final_report"] == (await company.row(parent))["final_report"]
    await company.check(second)


async def test_a_question_that_was_open_at_the_checkpoint_is_open_in_the_fork(company: Company) -> None:
    parent = await company.run("Ask a question.")
    await company.executor.execute(parent)
    async with company.sessions() as session:
        question = await session.scalar(select(Question).where(Question.run_id == parent))
    assert question is not None
    asked_at = (await checkpoints(company, parent))[0]
    await company.operate(questions.answer, question.id, "blue", by="ada")
    await company.executor.execute(parent)
    made = await fork(company, parent, asked_at)
    calls = len(company.transport.calls)
    await company.executor.execute(made)
    assert (await company.row(made))["status"] == "WAITING"
    assert len(company.transport.calls) == calls
    async with company.sessions() as session:
        again = await session.scalar(select(Question).where(Question.run_id == made))
    assert again is not None
    await company.operate(questions.answer, again.id, "green", by="ada")
    await company.executor.execute(made)
    assert '"confirmed": "green"' in (await company.row(made))["final_report"]
    assert '"confirmed": "blue"' in (await company.row(parent))["final_report"]
    await company.check(made)


async def test_an_answer_from_before_the_checkpoint_counts_in_the_fork(company: Company) -> None:
    parent = await company.run("Ask a question.")
    await company.executor.execute(parent)
    async with company.sessions() as session:
        question = await session.scalar(select(Question).where(Question.run_id == parent))
    assert question is not None
    await company.operate(questions.answer, question.id, "blue", by="ada")
    await company.executor.execute(parent)
    made = await fork(company, parent, (await checkpoints(company, parent))[2])
    await company.executor.execute(made)
    assert '"confirmed": "blue"' in (await company.row(made))["final_report"]


async def test_a_fork_has_settings_limits_and_a_snapshot_of_its_own(company: Company) -> None:
    parent = await company.run(budget={"tokens": 1_000})
    await company.executor.execute(parent)
    assert (await company.row(parent))["status"] == "STOPPED_BUDGET"
    made = await fork(company, parent, budget={"tokens": 50_000})
    await company.executor.execute(made)
    row = await company.row(made)
    assert (row["status"], row["limit_tokens"]) == ("COMPLETED", 50_000)
    assert (await company.row(parent))["limit_tokens"] == 1_000
    await company.check(made)


async def test_a_run_on_its_way_is_not_forked(company: Company) -> None:
    parent = await company.run()
    with pytest.raises(Conflict, match="already has a run on its way"):
        await fork(company, parent)


async def test_the_last_checkpoint_of_a_completed_run_leaves_nothing_to_do(company: Company) -> None:
    parent = await company.run()
    await company.executor.execute(parent)
    last, earlier, *_ = await checkpoints(company, parent)
    with pytest.raises(Conflict, match=f"nothing is left to do.*{earlier}"):
        await fork(company, parent, last)
    made = await fork(company, parent)
    assert (await company.row(made))["parent_checkpoint_id"] == str(earlier)


async def test_a_checkpoint_that_is_not_kept_is_refused_with_those_that_are(company: Company) -> None:
    parent = await company.run(budget={"tokens": 1_000})
    await company.executor.execute(parent)
    kept = await checkpoints(company, parent)
    with pytest.raises(NotFound, match=f"Kept are, newest first: {kept[0]}"):
        await fork(company, parent, uuid4())


async def test_a_fork_follows_the_graph_it_comes_from(company: Company) -> None:
    parent = await company.run()
    await company.executor.execute(parent)
    with pytest.raises(Invalid, match="A fork follows the graph"):
        await fork(company, parent, graph="other")
    gone = forks.Place(Graphs([]).find, PLACE.faults, no_branch)
    with pytest.raises(Unavailable, match="pinned to version 1"):
        await company.operate(forks.fork, parent, patch={}, place=gone, by="ada")
