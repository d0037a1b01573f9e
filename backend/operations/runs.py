"""What people can do with a run that is there: pause, resume, stop, retry.

Statuses change only along `domain/run.MOVES`, under the run's row lock; what a worker holds is asked of it
(`requested`), what nobody holds is done at once. Locks are taken in the order run, then project.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.elements import ColumnElement

from backend.adapters.db.engine import ring_after_commit
from backend.adapters.db.tables import DeadLetter, ProjectRun, Question
from backend.domain.ids import DEFAULT_TENANT
from backend.domain.lifecycle import transition
from backend.domain.project import ProjectStatus
from backend.domain.question import QuestionKind, QuestionStatus
from backend.domain.run import ENDED, MOVES, Request, RunStatus
from backend.errors import Conflict, Fault, Invalid, NotFound
from backend.operations import events, ledger, pages, projects

_OWN = frozenset({"tenant_id", "idempotency_key", "granted_at", "granted_until", "granted_budgets"})
"""What is nobody's business but the engine's."""
VIEW = pages.View(
    ProjectRun,
    leave_out=_OWN,
    more={"forecast": func.run_forecast(ProjectRun.id, type_=JSONB)},
)
LISTED = pages.View(
    ProjectRun,
    leave_out=_OWN | {"config_snapshot", "prompts", "brief", "final_report"},
)

STARTABLE = frozenset({ProjectStatus.READY, ProjectStatus.COMPLETED, ProjectStatus.FAILED})
"""A project in one of these may get a new run."""


@dataclass(frozen=True, slots=True)
class Limits:
    """New limits of a run that is retried; None leaves one as it is."""

    tokens: int | None = None
    usd: Decimal | None = None
    seconds: int | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """What a stopped run says of its end: a sentence, and why as a code."""

    message: str
    code: str = "stopped_by_person"


async def get(
    session: AsyncSession, run_id: UUID, *, tenant_id: UUID = DEFAULT_TENANT, lock: bool = False
) -> ProjectRun:
    """The run; with `lock`, its row is ours until the transaction ends. Raises `NotFound`."""
    query = select(ProjectRun).where(ProjectRun.id == run_id, ProjectRun.tenant_id == tenant_id)
    if lock:
        query = query.with_for_update(key_share=True).execution_options(populate_existing=True)
    run = await session.scalar(query)
    if run is None:
        raise NotFound(f"There is no run {run_id}.")
    return run


async def page(
    session: AsyncSession,
    wanted: pages.PageRequest,
    *,
    tenant_id: UUID = DEFAULT_TENANT,
    project_id: UUID | None = None,
    status: RunStatus | None = None,
    since: datetime | None = None,
) -> pages.Page:
    """A page of the runs that fit, newest first."""
    where = [ProjectRun.tenant_id == tenant_id]
    if project_id is not None:
        where.append(ProjectRun.project_id == project_id)
    if status is not None:
        where.append(ProjectRun.status == status)
    if since is not None:
        where.append(ProjectRun.created_at >= since)
    return await LISTED.page(session, wanted, *where)


async def forecast(session: AsyncSession, run_id: UUID) -> dict[str, Any] | None:
    """What the run will have spent when it is done, as ranges, and how they are computed; None: nothing can be said."""
    said: dict[str, Any] | None = await session.scalar(select(func.run_forecast(run_id, type_=JSONB)))
    return said


def check_startable(name: str, status: str, active_run_id: UUID | None) -> None:
    """Raise `Conflict` unless a run of this project may begin now."""
    if active_run_id is not None:
        raise Conflict(f"Project {name} already has a run on its way ({active_run_id}); wait for its end, or stop it.")
    if status not in STARTABLE:
        raise Conflict(f"Project {name} is {status}; only a project that is READY, COMPLETED or FAILED can be run.")


def next_number(project_id: ColumnElement[UUID]) -> ColumnElement[int]:
    """The number of a project's next run; the caller holds the project's row lock, by the same statement at least."""
    last = select(func.max(ProjectRun.number)).where(ProjectRun.project_id == project_id).scalar_subquery()
    return func.coalesce(last, 0) + 1


async def pause(
    session: AsyncSession, run_id: UUID, *, by: str, at_once: bool = False, tenant_id: UUID = DEFAULT_TENANT
) -> ProjectRun:
    """Ask a run to hold: at its next node edge or, `at_once`, before its next model call.

    At once, commands on their way are cut, since they can run again; calls on their way are waited for, since they are
    paid. A run that no worker holds yet is held when one takes it up. Asking twice is the same as asking once; asking
    for at once makes more of a pause that was asked for before. Raises `Conflict` when the run has ended or is being
    stopped.
    """
    run = await get(session, run_id, tenant_id=tenant_id, lock=True)
    _refuse_ended(run, "paused")
    if run.requested == Request.STOP:
        raise Conflict(f"Run {run.number} is being stopped; it cannot be paused.")
    asked = run.requested == Request.PAUSE
    if run.status == RunStatus.PAUSED or (asked and (run.pause_at_once or not at_once)):
        return run
    run.requested, run.pause_at_once = Request.PAUSE, at_once
    return await _changed(session, run, "run.pause_requested", by, {"at_once": at_once})


async def resume(session: AsyncSession, run_id: UUID, *, by: str, tenant_id: UUID = DEFAULT_TENANT) -> ProjectRun:
    """Let a paused run go on, or take back a pause that was asked for.

    A run that is on its way stays so. Raises `Conflict` when it has ended, is being stopped or waits for an answer.
    """
    run = await get(session, run_id, tenant_id=tenant_id, lock=True)
    _refuse_ended(run, "resumed; retry it to let it go on from its last checkpoint")
    if run.requested == Request.STOP:
        raise Conflict(f"Run {run.number} is being stopped; it cannot be resumed.")
    if run.status in {RunStatus.PAUSED, RunStatus.WAITING}:
        await _refuse_unanswered(session, run)
    if run.status == RunStatus.PAUSED:
        requeue(session, run)
    elif run.requested == Request.PAUSE:
        run.requested = Request.NONE
    else:
        return run
    return await _changed(session, run, "run.resume_requested", by)


async def stop(
    session: AsyncSession,
    run_id: UUID,
    *,
    by: str,
    ending: Stop | None = None,
    tenant_id: UUID = DEFAULT_TENANT,
) -> ProjectRun:
    """End a run: at once where no worker holds it, else the worker is asked and obeys within seconds.

    `ending` is what the run says of its end; that `by` stopped it, where nothing is given. Asking twice is the same as
    asking once, until the lease of a worker that does not obey is over. Raises `Conflict` when the run has ended in
    another way.
    """
    run = await get(session, run_id, tenant_id=tenant_id, lock=True)
    if run.status == RunStatus.STOPPED_USER:
        return run
    _refuse_ended(run, "stopped")
    said = ending or Stop(f"Stopped by {by}.")
    told = {"code": said.code, "reason": said.message}
    if run.status == RunStatus.RUNNING:
        if not await _is_abandoned(session, run):
            if run.requested == Request.STOP:
                return run
            run.requested = Request.STOP
            return await _changed(session, run, "run.stop_requested", by, told)
        await _take_from_its_worker(session, run)
    await _end_stopped(session, run, said)
    return await _changed(session, run, "run.stopped_user", by, told)


async def retry(
    session: AsyncSession,
    run_id: UUID,
    *,
    by: str,
    limits: Limits | None = None,
    payload: Mapping[str, Any] | None = None,
    tenant_id: UUID = DEFAULT_TENANT,
) -> ProjectRun:
    """Let a run that failed or was stopped go on from its last checkpoint, with higher limits if some are given.

    `payload` is told by the event beside who asked. Raises `Conflict` when it has not ended, has completed, or another
    run of the project is on its way, and `Invalid` for a limit that is already spent.
    """
    run = await get(session, run_id, tenant_id=tenant_id, lock=True)
    if run.status not in ENDED:
        raise Conflict(f"Run {run.number} is {run.status}; only a run that failed or was stopped can be retried.")
    transition(MOVES, RunStatus(run.status), RunStatus.QUEUED, what=f"Run {run.number}")
    project = await projects.get(session, run.project_id, tenant_id=tenant_id, lock=True)
    check_startable(project.name, project.status, project.active_run_id)
    _raise_limits(run, limits or Limits())
    requeue(session, run)
    run.ended_at, run.error, run.final_report = None, None, None
    project.active_run_id = run.id
    await _ask_again(session, run)
    await session.execute(
        update(DeadLetter)
        .where(DeadLetter.run_id == run.id, DeadLetter.replayed_at.is_(None))
        .values(replayed_at=func.clock_timestamp())
    )
    return await _changed(session, run, "run.retry_requested", by, payload)


async def _ask_again(session: AsyncSession, run: ProjectRun) -> None:
    """Open the questions that the end of a run left without an answer; their time begins anew."""
    unanswered = Question.status.in_((QuestionStatus.WITHDRAWN, QuestionStatus.EXPIRED)) & Question.answer.is_(None)
    # A budget question stood for a limit as it was; the retry says what the limits are now.
    query = select(Question).where(Question.run_id == run.id, Question.kind != QuestionKind.BUDGET, unanswered)
    for question in await session.scalars(query.order_by(Question.created_at).with_for_update()):
        question.status, question.answered_at = QuestionStatus.OPEN, None
        if question.due_at is not None:
            question.due_at = func.clock_timestamp() + (question.due_at - question.created_at)
        asked: dict[str, Any] = {"id": str(question.id), "key": question.key, "text": question.text}
        asked |= {"question_kind": question.kind}
        asked |= {"options": question.options, "default": question.default, "asked_by": question.asked_by}
        events.record(session, run, "question.asked", asked)


def requeue(session: AsyncSession, run: ProjectRun) -> None:
    """Put a held or ended run back into the queue; the caller records why."""
    run.status = transition(MOVES, RunStatus(run.status), RunStatus.QUEUED, what=f"Run {run.number}")
    run.requested = Request.NONE
    run.stop_reason = None
    run.claims = 0
    run.queued_at = func.clock_timestamp()


def _refuse_ended(run: ProjectRun, what: str) -> None:
    if run.status in ENDED:
        raise Conflict(f"Run {run.number} has ended as {run.status}; it cannot be {what}.")


async def _refuse_unanswered(session: AsyncSession, run: ProjectRun) -> None:
    question = await session.scalar(
        select(Question)
        .where(Question.run_id == run.id, Question.status == QuestionStatus.OPEN)
        .order_by(Question.created_at)
        .limit(1)
    )
    if question is None:
        return
    raise Conflict(
        f"Run {run.number} waits for an answer to question {question.id} ({question.key}); answer it instead."
    )


def _raise_limits(run: ProjectRun, limits: Limits) -> None:
    spent_tokens = run.spent_tokens_input + run.spent_tokens_output
    for name, wanted, spent in (
        ("tokens", limits.tokens, spent_tokens),
        ("usd", limits.usd, run.spent_usd),
        ("seconds", limits.seconds, run.spent_seconds),
    ):
        if wanted is None:
            continue
        if wanted <= spent:
            message = f"must be more than the {spent} that run {run.number} has already spent"
            raise Invalid(f"budget.{name} {message}.", faults=[Fault(f"/budget/{name}", message)])
        setattr(run, f"limit_{name}", wanted)


async def _is_abandoned(session: AsyncSession, run: ProjectRun) -> bool:
    """Whether nobody may write for a run any more: its lease is over or was given back."""
    over = func.coalesce(ProjectRun.lease_expires_at < func.clock_timestamp(), True)
    return bool(await session.scalar(select(over).where(ProjectRun.id == run.id)))


async def _take_from_its_worker(session: AsyncSession, run: ProjectRun) -> None:
    """Fence a worker off that may only be frozen, and settle what it had in flight."""
    run.lease_epoch += 1
    run.lease_owner, run.lease_expires_at = None, None
    await session.flush()
    await ledger.settle_lost(session, run)


async def _end_stopped(session: AsyncSession, run: ProjectRun, said: Stop) -> None:
    run.status = transition(MOVES, RunStatus(run.status), RunStatus.STOPPED_USER, what=f"Run {run.number}")
    run.requested = Request.NONE
    run.stop_reason = said.code
    run.error = said.message
    run.ended_at = func.clock_timestamp()
    await session.execute(
        update(Question)
        .where(Question.run_id == run.id, Question.status == QuestionStatus.OPEN)
        .values(status=QuestionStatus.WITHDRAWN)
    )
    project = await projects.get(session, run.project_id, tenant_id=run.tenant_id, lock=True)
    project.active_run_id = None
    if project.status == ProjectStatus.RUNNING:
        project.status = ProjectStatus.FAILED


async def _changed(
    session: AsyncSession, run: ProjectRun, event_type: str, by: str, payload: Mapping[str, Any] | None = None
) -> ProjectRun:
    run.version += 1
    events.record(session, run, event_type, {"by": by, **(payload or {})})
    ring_after_commit(session, run.id)
    await session.flush()
    return run
