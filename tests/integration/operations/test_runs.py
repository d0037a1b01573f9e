"""Starting and steering runs: statuses move along the life cycle only, whoever asks, however many ask at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from backend.adapters.db.direct import driver_of
from backend.adapters.db.engine import Sessions
from backend.adapters.db.tables import Event, Project, ProjectRun, ProjectTemplate, Question
from backend.domain.config import RunConfig
from backend.domain.run import ENDED, MOVES, Request, RunStatus
from backend.errors import Conflict, Fault, Invalid, NotFound
from backend.operations import events, projects, questions, runs, starting
from tests.patience import PATIENCE

Make = Callable[..., Awaitable[Any]]


async def add_template(session: AsyncSession, slug: str = "standard", **patch: Any) -> ProjectTemplate:
    template = ProjectTemplate(
        slug=slug, version=1, title=slug, graph="software_company", config_patch=patch, content_hash=uuid4().hex
    )
    session.add(template)
    await session.flush()
    return template


def no_faults(config: RunConfig, brief: str) -> Sequence[Fault]:
    return ()


async def start(session: AsyncSession, project: Project, **options: Any) -> ProjectRun:
    asked: dict[str, Any] = {"patch": {}, "graph_version": lambda name: "1", "faults": no_faults, "by": "ada"} | options
    await session.flush()
    started = await starting.start(await driver_of(session), project.id, **asked)
    if project in session:
        await session.refresh(project)
    return await runs.get(session, started.id)


async def types_of(session: AsyncSession, run: ProjectRun) -> list[str]:
    return [event.type for event in await events.timeline(session, run.id)]


async def test_a_run_is_pinned_to_merged_settings_and_queued(session: AsyncSession, make_project: Make) -> None:
    await add_template(session, budget={"tokens": 500, "usd": "2"}, parallelism=3)
    project = await make_project(session, config_patch={"parallelism": 4})
    run = await start(session, project, patch={"budget": {"usd": "1.25"}})
    assert (run.status, run.number, run.limit_tokens, run.limit_usd) == ("QUEUED", 1, 500, Decimal("1.25"))
    assert run.config_snapshot["parallelism"] == 4
    assert project.active_run_id == run.id
    assert await types_of(session, run) == ["run.created"]


async def test_a_project_has_one_run_on_its_way(session: AsyncSession, make_project: Make) -> None:
    await add_template(session)
    project = await make_project(session)
    await start(session, project)
    with pytest.raises(Conflict, match="already has a run"):
        await start(session, project)


async def test_runs_are_numbered_within_the_project(session: AsyncSession, make_project: Make) -> None:
    await add_template(session)
    project = await make_project(session)
    for number in (1, 2):
        run = await start(session, project)
        assert run.number == number
        await runs.stop(session, run.id, by="ada")


async def test_the_same_key_starts_the_same_run(session: AsyncSession, make_project: Make) -> None:
    await add_template(session)
    project, other = await make_project(session), await make_project(session)
    run = await start(session, project, idempotency_key="k")
    assert (await start(session, project, idempotency_key="k")).id == run.id
    with pytest.raises(Conflict, match="another project"):
        await start(session, other, idempotency_key="k")


@pytest.mark.parametrize("status", ["DRAFT", "ARCHIVED"])
async def test_only_a_project_that_is_ready_can_be_run(session: AsyncSession, make_project: Make, status: str) -> None:
    await add_template(session)
    with pytest.raises(Conflict, match=status):
        await start(session, await make_project(session, status=status))


async def test_settings_that_cannot_work_here_are_refused_before_anything_is_made(
    session: AsyncSession, make_project: Make
) -> None:
    await add_template(session)
    project = await make_project(session)
    fault = Fault("/models/providers/openai/key_variable", "OPENAI_API_KEY is not set.")
    with pytest.raises(Invalid, match="OPENAI_API_KEY") as refused:
        await start(session, project, faults=lambda config, brief: [fault])
    assert refused.value.faults == (fault,)
    assert await session.scalar(select(func.count()).select_from(ProjectRun)) == 0


async def test_a_pause_is_asked_of_the_worker_once(session: AsyncSession, make_run: Make) -> None:
    run = await make_run(session, status="RUNNING")
    for _ in range(3):
        await runs.pause(session, run.id, by="ada")
    assert (run.status, run.requested) == ("RUNNING", "pause")
    assert await types_of(session, run) == ["run.pause_requested"]


async def test_a_pause_at_once_makes_more_of_a_pause_and_never_less(session: AsyncSession, make_run: Make) -> None:
    run = await make_run(session, status="RUNNING")
    for at_once in (False, True, False, True):
        await runs.pause(session, run.id, by="ada", at_once=at_once)
    assert (run.requested, run.pause_at_once) == ("pause", True)
    assert await types_of(session, run) == ["run.pause_requested", "run.pause_requested"]
    await runs.resume(session, run.id, by="ada")
    await runs.pause(session, run.id, by="ada")
    assert (run.requested, run.pause_at_once) == ("pause", False)


async def test_a_pause_can_be_taken_back(session: AsyncSession, make_run: Make) -> None:
    run = await make_run(session, status="RUNNING")
    await runs.pause(session, run.id, by="ada")
    await runs.resume(session, run.id, by="ada")
    assert (run.status, run.requested) == ("RUNNING", "none")


async def test_a_paused_run_goes_back_into_the_queue(session: AsyncSession, make_run: Make) -> None:
    run = await make_run(session, status="PAUSED", requested="pause", claims=3, stop_reason="paused")
    await runs.resume(session, run.id, by="ada")
    assert (run.status, run.requested, run.claims, run.stop_reason) == ("QUEUED", "none", 0, None)
    assert await types_of(session, run) == ["run.resume_requested"]


@pytest.mark.parametrize("status", sorted(ENDED))
@pytest.mark.parametrize("verb", [runs.pause, runs.resume])
async def test_a_finished_run_is_neither_paused_nor_resumed(
    session: AsyncSession, make_run: Make, verb: Any, status: RunStatus
) -> None:
    run = await make_run(session, status=status)
    with pytest.raises(Conflict, match=status):
        await verb(session, run.id, by="ada")
    assert await events.timeline(session, run.id) == []


@pytest.mark.parametrize("status", ["QUEUED", "PAUSED", "WAITING"])
async def test_a_run_that_nobody_holds_is_stopped_at_once(session: AsyncSession, make_run: Make, status: str) -> None:
    run = await make_run(session, status=status)
    project = await session.get_one(Project, run.project_id)
    project.active_run_id = run.id
    question = Question(run_id=run.id, key="q", kind="clarification", asked_by="pm", text="Which?")
    session.add(question)
    await session.flush()
    await runs.stop(session, run.id, by="ada")
    await session.refresh(run)
    await session.refresh(question)
    assert (run.status, run.stop_reason, question.status) == ("STOPPED_USER", "stopped_by_person", "WITHDRAWN")
    assert run.ended_at is not None
    assert project.active_run_id is None
    assert await types_of(session, run) == ["run.stopped_user"]
    await runs.stop(session, run.id, by="ada")
    assert await types_of(session, run) == ["run.stopped_user"]


async def test_a_run_that_a_worker_holds_is_asked_to_stop_and_no_longer_pauses(
    session: AsyncSession, make_run: Make
) -> None:
    lease = {"lease_owner": "w", "lease_expires_at": datetime.now(UTC) + timedelta(hours=1)}
    run = await make_run(session, status="RUNNING", requested="pause", **lease)
    await runs.stop(session, run.id, by="ada")
    assert (run.status, run.requested) == ("RUNNING", "stop")
    for verb in (runs.pause, runs.resume):
        with pytest.raises(Conflict, match="being stopped"):
            await verb(session, run.id, by="ada")


@pytest.mark.parametrize("status", ["FAILED", "STOPPED_BUDGET", "STOPPED_SECURITY", "STOPPED_USER"])
async def test_a_run_that_did_not_complete_can_be_retried_with_a_higher_limit(
    session: AsyncSession, make_run: Make, status: str
) -> None:
    run = await make_run(session, status=status, claims=5, error="x", limit_usd=Decimal(1), spent_usd=Decimal("0.9"))
    await runs.retry(session, run.id, by="ada", limits=runs.Limits(usd=Decimal(2)))
    assert (run.status, run.claims, run.error, run.limit_usd) == ("QUEUED", 0, None, Decimal(2))
    assert (await session.get_one(Project, run.project_id)).active_run_id == run.id


async def test_a_limit_below_what_is_spent_is_refused(session: AsyncSession, make_run: Make) -> None:
    run = await make_run(session, status="STOPPED_BUDGET", limit_usd=Decimal(1), spent_usd=Decimal("0.9"))
    with pytest.raises(Invalid, match="already spent"):
        await runs.retry(session, run.id, by="ada", limits=runs.Limits(usd=Decimal("0.9")))


@pytest.mark.parametrize("status", sorted(set(RunStatus) - {s for s in ENDED if MOVES[s]}))
async def test_what_is_on_its_way_or_complete_is_not_retried(
    session: AsyncSession, make_run: Make, status: RunStatus
) -> None:
    run = await make_run(session, status=status)
    with pytest.raises(Conflict):
        await runs.retry(session, run.id, by="ada")


async def test_a_retry_waits_for_the_other_run_of_the_project(session: AsyncSession, make_run: Make) -> None:
    old = await make_run(session, status="FAILED")
    project = await session.get_one(Project, old.project_id)
    new = await make_run(session, project=project, number=2, status="RUNNING")
    project.active_run_id = new.id
    await session.flush()
    with pytest.raises(Conflict, match="already has a run"):
        await runs.retry(session, old.id, by="ada")


async def test_the_run_of_another_tenant_is_not_there(session: AsyncSession, make_run: Make) -> None:
    run = await make_run(session)
    with pytest.raises(NotFound):
        await runs.pause(session, run.id, by="eve", tenant_id=uuid4())


async def test_two_hundred_control_calls_at_once_make_no_illegal_transition(sessions: Sessions, make_run: Make) -> None:
    """Every transition is checked by the database's own trigger; anything but a `Conflict` fails the test."""
    async with sessions.begin() as session:
        run = await make_run(session, status="WAITING")
        project = await session.get_one(Project, run.project_id)
        project.active_run_id = run.id
        question = Question(run_id=run.id, key="q", kind="clarification", asked_by="pm", text="Which?")
        session.add(question)
    outcomes: list[str] = []

    async def ask(index: int) -> None:
        async with sessions() as session:
            verbs: list[Callable[[], Awaitable[Any]]] = [
                lambda: runs.pause(session, run.id, by=f"p{index}"),
                lambda: runs.resume(session, run.id, by=f"p{index}"),
                lambda: runs.stop(session, run.id, by=f"p{index}"),
                lambda: runs.retry(session, run.id, by=f"p{index}"),
                lambda: questions.answer(session, question.id, "this", by=f"p{index}"),
            ]
            try:
                async with session.begin():
                    await random.Random(index).choice(verbs)()
                outcomes.append("done")
            except Conflict:
                outcomes.append("conflict")

    await asyncio.gather(*(ask(index) for index in range(200)))
    assert len(outcomes) == 200
    assert outcomes.count("done") > 1
    async with sessions() as session:
        after = await session.get_one(ProjectRun, run.id)
        seqs = (await session.scalars(select(Event.seq).where(Event.run_id == run.id).order_by(Event.seq))).all()
        assert list(seqs) == list(range(1, after.event_seq + 1))
        owner = await session.get_one(Project, run.project_id)
        assert (owner.active_run_id == run.id) == (after.status not in ENDED)
        assert after.requested in set(Request)


async def test_twenty_starts_at_once_make_one_run(sessions: Sessions, make_project: Make) -> None:
    async with sessions.begin() as session:
        await add_template(session)
        project = await make_project(session)

    async def begin() -> bool:
        try:
            async with sessions.begin() as session:
                await start(session, project)
            return True
        except Conflict:
            return False

    assert sum(await asyncio.gather(*(begin() for _ in range(20)))) == 1


async def test_deleting_and_starting_at_once_leaves_all_or_nothing(sessions: Sessions, make_project: Make) -> None:
    async with sessions.begin() as session:
        await add_template(session)
        made = [await make_project(session) for _ in range(10)]

    async def remove(*_: Any) -> None:
        await asyncio.sleep(0)

    async def begin(project: Project) -> None:
        async with sessions.begin() as session:
            await start(session, project)

    async def delete(project: Project) -> None:
        async with sessions.begin() as session:
            await projects.delete(session, project.id, remove=remove)

    both = [verb(project) for project in made for verb in (begin, delete)]
    ended = await asyncio.gather(*both, return_exceptions=True)
    assert all(end is None or isinstance(end, Conflict | NotFound) for end in ended), ended
    async with sessions() as session:
        orphans = text(
            "SELECT count(*) FROM project_runs r LEFT JOIN projects p ON p.id = r.project_id WHERE p.id IS NULL"
        )
        assert await session.scalar(orphans) == 0


async def test_a_start_that_waited_for_an_edit_follows_the_template_that_the_edit_took(
    sessions: Sessions, make_project: Make
) -> None:
    async with sessions.begin() as session:
        await add_template(session, parallelism=2)
        await add_template(session, "other", parallelism=7)
        project = await make_project(session)
    async with sessions() as editor, sessions() as starter:
        await editor.execute(update(Project).where(Project.id == project.id).values(template_slug="other"))
        pid = await starter.scalar(text("SELECT pg_backend_pid()"))
        asked = asyncio.ensure_future(start(starter, project))
        waits = text("SELECT cardinality(pg_blocking_pids(:pid)) > 0")
        async with asyncio.timeout(PATIENCE), sessions() as watcher:
            while not await watcher.scalar(waits, {"pid": pid}):
                await asyncio.sleep(0.01)
        await editor.commit()
        run = await asked
        assert (run.template_slug, run.config_snapshot["parallelism"]) == ("other", 7)
        await starter.rollback()


async def test_of_many_starts_at_once_that_stand_alone_one_wins(sessions: Sessions, make_project: Make) -> None:
    async with sessions.begin() as session:
        await add_template(session)
        project = await make_project(session)
    alone = async_sessionmaker(sessions.kw["bind"].execution_options(isolation_level="AUTOCOMMIT"))

    async def one() -> UUID:
        async with alone() as session:
            return (await start(session, project)).id

    ends = await asyncio.gather(*(one() for _ in range(20)), return_exceptions=True)
    won = [end for end in ends if not isinstance(end, BaseException)]
    assert len(won) == 1
    assert all(isinstance(end, Conflict) and str(won[0]) in str(end) for end in ends if isinstance(end, BaseException))
    async with sessions() as session:
        (run,) = await session.scalars(select(ProjectRun))
        assert (run.id, run.number) == (won[0], 1)
        assert (await session.get_one(Project, project.id)).active_run_id == won[0]


async def test_a_start_gives_way_to_edits_without_end(
    sessions: Sessions, make_project: Make, database_url: str
) -> None:
    async with sessions.begin() as session:
        await add_template(session)
        project = await make_project(session)
    edits = 0

    async def edit() -> None:
        connection = await asyncpg.connect(database_url)
        await connection.execute("UPDATE projects SET brief = brief || '.' WHERE id = $1", project.id)
        await connection.close()

    def version_while_somebody_edits(graph: str) -> str:
        nonlocal edits
        edits += 1
        with ThreadPoolExecutor() as other:
            other.submit(asyncio.run, edit()).result()
        return "1"

    async with sessions() as session:
        with pytest.raises(Conflict, match="changed by others"):
            await start(session, project, graph_version=version_while_somebody_edits)
    assert edits > 1
    async with sessions() as session:
        assert await session.scalar(select(func.count()).select_from(ProjectRun)) == 0
