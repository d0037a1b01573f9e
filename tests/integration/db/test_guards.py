"""What nobody can do to the run store, not even by hand in pgAdmin."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from enum import StrEnum
from itertools import product
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import delete, func, null, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db.engine import Sessions
from backend.adapters.db.tables import (
    Artifact,
    Budget,
    DeadLetter,
    Event,
    Finding,
    ModelCall,
    Project,
    ProjectRun,
    ProjectTemplate,
    Prompt,
    Question,
    Table,
    Task,
    TaskComment,
    TaskDependency,
)
from backend.domain import project as project_rules
from backend.domain import run as run_rules
from backend.domain import task as task_rules
from backend.domain.config import BudgetConfig, RunConfig
from tests.conftest import MakeProject, MakeRun


async def refused(session: AsyncSession, statement: Any, because: str) -> None:
    with pytest.raises(IntegrityError, match=because):
        async with session.begin_nested():
            await session.execute(statement)


async def add_task(session: AsyncSession, run: ProjectRun, key: str, **values: Any) -> Task:
    task = Task(
        **{"run_id": run.id, "key": key, "title": key, "kind": "feature", "assigned_role": "developer"} | values
    )
    session.add(task)
    await session.flush()
    return task


async def add_call(session: AsyncSession, run: ProjectRun, **values: Any) -> ModelCall:
    call = ModelCall(
        **{
            "run_id": run.id,
            "node": "dev_work",
            "visit": 1,
            "ordinal": 1,
            "attempt": 1,
            "role": "developer",
            "provider": "openai",
            "model": "gpt-4o-mini",
            "status": "reserved",
            "request_hash": "0" * 64,
            "request": {},
            "reserved_tokens": 100,
            "reserved_usd": 1,
            "lease_epoch": 1,
        }
        | values
    )
    session.add(call)
    await session.flush()
    return call


async def allowed_moves(session: AsyncSession, row: Any, words: type[StrEnum]) -> dict[str, set[str]]:
    """Try every move on a row by force and note which ones the database lets through."""
    table = type(row).__table__
    found: dict[str, set[str]] = {str(word): set() for word in words}
    for old, new in product(words, words):
        if old is new:
            continue
        savepoint = await session.begin_nested()
        await session.execute(text("SET LOCAL session_replication_role = replica"))
        await session.execute(update(table).where(table.c.id == row.id).values(status=old))
        await session.execute(text("SET LOCAL session_replication_role = origin"))
        try:
            await session.execute(update(table).where(table.c.id == row.id).values(status=new))
            found[old].add(str(new))
        except IntegrityError as error:
            assert f"is {old} and cannot become {new}" in str(error)  # noqa: PT017 - either outcome is a finding
        await savepoint.rollback()
    return found


def as_words(moves: Mapping[Any, frozenset[Any]]) -> dict[str, set[str]]:
    return {str(old): {str(new) for new in news} for old, news in moves.items()}


async def test_the_database_allows_exactly_the_moves_of_the_domain(session: AsyncSession, make_run: MakeRun) -> None:
    run = await make_run(session)
    project = await session.get_one(Project, run.project_id)
    task = await add_task(session, run, "a")
    assert await allowed_moves(session, run, run_rules.RunStatus) == as_words(run_rules.MOVES)
    assert await allowed_moves(session, project, project_rules.ProjectStatus) == as_words(project_rules.MOVES)
    assert await allowed_moves(session, task, task_rules.TaskStatus) == as_words(task_rules.MOVES)


async def test_a_project_has_one_active_run(session: AsyncSession, make_run: MakeRun) -> None:
    run = await make_run(session)
    project = await session.get_one(Project, run.project_id)
    with pytest.raises(IntegrityError, match="uq_run_one_active"):
        async with session.begin_nested():
            await make_run(session, project=project, number=2)
    await make_run(session, project=project, number=3, status="COMPLETED")


async def test_a_template_version_never_changes_and_is_never_deleted(session: AsyncSession) -> None:
    template = ProjectTemplate(
        slug="own", version=1, title="Own", graph="software_company", config_patch={}, content_hash="0" * 64
    )
    session.add(template)
    await session.flush()
    for column, value in {"title": "Other", "config_patch": {"parallelism": 9}, "version": 2, "slug": "x"}.items():
        await refused(session, update(ProjectTemplate).values({column: value}), "make the next version")
    await refused(session, delete(ProjectTemplate), "archive it")
    await session.execute(update(ProjectTemplate).values(archived_at=func.now()))


async def test_the_configuration_of_a_run_never_changes(session: AsyncSession, make_run: MakeRun) -> None:
    await make_run(session)
    await refused(session, update(ProjectRun).values(config_snapshot={"graph": "other"}), "start another run")


async def test_the_prompts_of_a_run_never_change_once_it_has_some(session: AsyncSession, make_run: MakeRun) -> None:
    await make_run(session)
    await session.execute(update(ProjectRun).values(prompts={"qa": "1"}))
    await session.execute(update(ProjectRun).values(prompts={"qa": "1"}))
    for other in ({"qa": "2"}, {}, null()):
        await refused(session, update(ProjectRun).values(prompts=other), "prompts of a run never change")


async def test_a_prompt_is_what_its_hash_says_for_ever(session: AsyncSession) -> None:
    session.add(Prompt(sha256=hashlib.sha256("Grüße.".encode()).hexdigest(), name="qa", text="Grüße."))
    await session.flush()
    await refused(session, update(Prompt).values(text="Other."), "another text is another row")
    await refused(session, update(Prompt).values(name="lead"), "another text is another row")
    await refused(session, delete(Prompt), "runs are pinned to them")
    await refused(session, Prompt.__table__.insert().values(sha256="0" * 64, name="qa", text="x"), "ck_prompts_content")


async def test_comments_and_events_are_only_added(session: AsyncSession, make_run: MakeRun) -> None:
    run = await make_run(session)
    session.add(TaskComment(run_id=run.id, author_name="pm", comment_type="note", body="Hello"))
    session.add(Event(run_id=run.id, seq=1, type="run.created", source="api"))
    await session.flush()
    await refused(session, update(TaskComment).values(body="Bye"), "write another one")
    await refused(session, delete(TaskComment), "unless with their project")
    await refused(session, update(Event).values(payload={"x": 1}), "Events are never changed")
    await refused(session, delete(Event), "unless with their project")


async def test_the_numbers_of_a_runs_events_are_unique(session: AsyncSession, make_run: MakeRun) -> None:
    run = await make_run(session)
    session.add(Event(run_id=run.id, seq=1, type="run.created", source="api"))
    await session.flush()
    with pytest.raises(IntegrityError, match="uq_events_run_id_seq"):
        async with session.begin_nested():
            session.add(Event(run_id=run.id, seq=1, type="run.started", source="api"))
            await session.flush()


async def test_a_question_is_answered_once(session: AsyncSession, make_run: MakeRun) -> None:
    run = await make_run(session)
    question = Question(run_id=run.id, key="a", kind="clarification", asked_by="pm", text="Which?")
    session.add(question)
    await session.flush()
    answer = update(Question).values(status="ANSWERED", answered_by="ada", answered_at=func.now())
    await refused(session, answer, "ck_questions_answer")
    await session.execute(answer.values(answer="This"))
    await refused(session, answer.values(answer="That"), "keeps its answer")
    await refused(session, update(Question).values(status="OPEN"), "keeps its answer")


@pytest.mark.parametrize("status", ["WITHDRAWN", "EXPIRED"])
async def test_a_question_that_nobody_answered_may_be_open_again(
    session: AsyncSession, make_run: MakeRun, status: str
) -> None:
    run = await make_run(session)
    session.add(Question(run_id=run.id, key="which", kind="clarification", asked_by="pm", text="Which?", status=status))
    await session.flush()
    await refused(session, update(Question).values(status="OPEN", answer="This"), "keeps its answer")
    await refused(session, update(Question).values(status="WITHDRAWN", answer="This"), "keeps its answer")
    await session.execute(update(Question).values(status="OPEN", answered_at=None))


async def test_a_settled_call_keeps_what_it_cost_and_may_still_lose_its_replay(
    session: AsyncSession, make_run: MakeRun
) -> None:
    run = await make_run(session)
    await add_call(session, run)
    await session.execute(update(ModelCall).values(status="done", cost_usd=1, settled_at=func.now()))
    await refused(session, update(ModelCall).values(cost_usd=0), "keeps what it cost")
    await refused(session, update(ModelCall).values(status="released"), "keeps what it cost")
    await refused(session, delete(ModelCall), "unless with their project")
    await session.execute(update(ModelCall).values(replayable=False))


@pytest.mark.parametrize(
    ("held", "billed", "more"),
    [({"reserved_tokens": 100}, {"spent_tokens_input": 140}, 1), ({"reserved_usd": 1}, {"spent_usd": 1.4}, 0.000001)],
)
async def test_nothing_is_held_beyond_a_limit_but_excess_can_be_booked(
    session: AsyncSession, make_run: MakeRun, held: dict[str, Any], billed: dict[str, Any], more: float
) -> None:
    await make_run(session, config=RunConfig(budget=BudgetConfig(tokens=100, usd="1")))
    [column] = held
    await session.execute(update(ProjectRun).values(held))
    await refused(
        session, update(ProjectRun).values({column: held[column] + more}), "ck_project_runs_reserved_ceiling|limit"
    )
    await session.execute(update(ProjectRun).values({column: 0} | billed))
    await refused(session, update(ProjectRun).values({column: more}), "would pass a limit of the run")
    await refused(session, update(ProjectRun).values({column: -1}), "ck_project_runs_reserved_floor")


async def test_nothing_is_held_beyond_the_limit_of_a_role(session: AsyncSession, make_run: MakeRun) -> None:
    run = await make_run(session)
    session.add(Budget(scope="run_role", owner_id=run.id, name="pm", limit_tokens=10, spent_tokens=6))
    await session.flush()
    await session.execute(update(Budget).values(reserved_tokens=4))
    await refused(session, update(Budget).values(reserved_tokens=5), "would pass a limit of the budget")
    await session.execute(update(Budget).values(limit_seconds=10, spent_seconds=6))
    await session.execute(update(Budget).values(reserved_seconds=4))
    await refused(session, update(Budget).values(reserved_seconds=5), "would pass a limit of the budget")
    await refused(session, update(Budget).values(reserved_seconds=11), "ck_budgets_seconds|would pass")
    await refused(session, update(Budget).values(reserved_seconds=-1), "ck_budgets_seconds")


async def test_dependencies_that_form_a_cycle_are_refused(session: AsyncSession, make_run: MakeRun) -> None:
    run = await make_run(session)
    a, b, c = [await add_task(session, run, key) for key in "abc"]
    session.add_all([TaskDependency(task_id=b.id, depends_on_task_id=a.id)])
    session.add_all([TaskDependency(task_id=c.id, depends_on_task_id=b.id)])
    await session.flush()
    link = TaskDependency.__table__.insert()
    await refused(session, link.values(task_id=a.id, depends_on_task_id=c.id), "form a cycle")
    await refused(session, link.values(task_id=a.id, depends_on_task_id=a.id), "not_itself")
    other = await add_task(session, await make_run(session), "elsewhere")
    await refused(session, link.values(task_id=a.id, depends_on_task_id=other.id), "another run")


async def test_two_transactions_cannot_close_a_cycle_between_them(sessions: Sessions, make_run: MakeRun) -> None:
    async with sessions.begin() as session:
        run = await make_run(session)
        a, b = (await add_task(session, run, "a")).id, (await add_task(session, run, "b")).id

    async def link(task: UUID, other: UUID) -> bool:
        try:
            async with sessions.begin() as session:
                session.add(TaskDependency(task_id=task, depends_on_task_id=other))
                await session.flush()
                await asyncio.sleep(0.05)  # holds its transaction open while the other one writes
        except IntegrityError:
            return False
        return True

    assert sorted(await asyncio.gather(link(a, b), link(b, a))) == [False, True]


async def test_a_task_is_never_part_of_itself(session: AsyncSession, make_run: MakeRun) -> None:
    run = await make_run(session)
    a = await add_task(session, run, "a")
    b = await add_task(session, run, "b", parent_task_id=a.id)
    await refused(session, update(Task).where(Task.id == a.id).values(parent_task_id=b.id), "form a cycle")
    await refused(session, update(Task).where(Task.id == a.id).values(parent_task_id=a.id), "not_its_parent")
    other = await make_run(session)
    with pytest.raises(IntegrityError, match="another run"):
        async with session.begin_nested():
            await add_task(session, other, "c", parent_task_id=a.id)


async def test_deleting_a_project_leaves_nothing_of_it(
    session: AsyncSession, make_project: MakeProject, make_run: MakeRun
) -> None:
    project = await make_project(session)
    parent = await make_run(session, project=project, status="COMPLETED")
    run = await make_run(session, project=project, number=2, parent_run_id=parent.id)
    project.active_run_id = run.id
    a = await add_task(session, run, "a")
    b = await add_task(session, run, "b", parent_task_id=a.id)
    comment = TaskComment(run_id=run.id, task_id=b.id, author_name="pm", comment_type="note", body="Hello")
    session.add_all(
        [
            TaskDependency(task_id=b.id, depends_on_task_id=a.id),
            comment,
            Event(project_id=project.id, type="project.created", source="api"),
            Event(project_id=project.id, run_id=run.id, seq=1, type="run.created", source="api"),
            Question(run_id=run.id, key="a", kind="clarification", asked_by="pm", text="Which?"),
            DeadLetter(run_id=run.id, kind="run", error="It broke."),
            Budget(scope="run_role", owner_id=run.id, name="pm", limit_tokens=10),
            Budget(scope="project", owner_id=project.id, name="all", limit_tokens=10),
            Artifact(
                run_id=run.id, kind="report", path="report.md", media_type="text/markdown", size=1, sha256="0" * 64
            ),
            Finding(
                run_id=run.id,
                source="qa",
                scanner="pytest",
                rule="failed",
                severity="HIGH",
                message="It failed.",
                fingerprint="0" * 32,
            ),
        ]
    )
    await session.flush()
    session.add(
        TaskComment(run_id=run.id, author_name="ada", comment_type="note", body="Yes", parent_comment_id=comment.id)
    )
    await add_call(session, run)
    await session.execute(delete(Project).where(Project.id == project.id))
    left = {
        table.name: await session.scalar(select(func.count()).select_from(table))
        for table in Table.metadata.sorted_tables
        if table.name not in ("tenants", "project_templates")
    }
    assert {name for name, count in left.items() if count} == set()
