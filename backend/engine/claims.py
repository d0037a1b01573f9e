"""Giving runs back: release, pause, wait, end; each one fenced transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db.checkpointer import LeaseLost
from backend.adapters.db.engine import Sessions, ring_after_commit, transaction
from backend.adapters.db.tables import Event, ModelCall, Project, ProjectRun, Question
from backend.domain.event import ENDING_EVENT
from backend.domain.lifecycle import transition
from backend.domain.ports import Bell
from backend.domain.project import ProjectStatus
from backend.domain.question import ExpiryAction, QuestionKind, QuestionStatus, interrupt_key
from backend.domain.run import MOVES, Request, RunStatus
from backend.engine.report import report_of
from backend.operations import events

_WORKED = text(
    "UPDATE project_runs SET spent_seconds = spent_seconds + greatest(0, coalesce(extract(epoch FROM"
    " clock_timestamp() - lease_expires_at + make_interval(secs => :ttl)), 0))::numeric(14, 6),"
    " lease_owner = NULL, lease_expires_at = CASE WHEN :again THEN clock_timestamp() END WHERE id = :run"
)


Told = Sequence[tuple[str, Mapping[str, Any]]]
"""Events by type and payload."""


async def _why_stopped(session: AsyncSession, run: ProjectRun) -> tuple[str, str]:
    """What the stop that was asked for last says of the end: a code and a sentence."""
    told: Mapping[str, Any] | None = await session.scalar(
        select(Event.payload)
        .where(Event.run_id == run.id, Event.type == "run.stop_requested")
        .order_by(Event.seq.desc())
        .limit(1)
    )
    said = told or {}
    return said.get("code", "stopped_by_person"), said.get("reason", "Somebody stopped the run.")


async def owned(session: AsyncSession, run_id: UUID, epoch: int) -> ProjectRun:
    """The run, its row locked; raises `LeaseLost` when it has another owner."""
    run = await session.scalar(
        select(ProjectRun)
        .where(ProjectRun.id == run_id, ProjectRun.lease_epoch == epoch)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )
    if run is None:
        raise LeaseLost("The run has another owner.")
    return run


async def release(sessions: Sessions, bell: Bell, run_id: UUID, epoch: int, *, lease_seconds: float) -> None:
    """Give a run back so that any worker may claim it at once."""
    async with transaction(sessions, bell) as session:
        run = await owned(session, run_id, epoch)
        if run.status != RunStatus.RUNNING:
            return
        await _give_back(session, run, lease_seconds)


async def _give_back(session: AsyncSession, run: ProjectRun, lease_seconds: float) -> None:
    # A run that was given back on purpose is no poison.
    run.claims = 0
    await session.flush()
    await session.execute(_WORKED, {"run": run.id, "ttl": lease_seconds, "again": True})
    ring_after_commit(session, run.id)


async def pause(
    sessions: Sessions,
    bell: Bell,
    run_id: UUID,
    epoch: int,
    *,
    lease_seconds: float,
    reason: str,
    question: Mapping[str, Any] | None = None,
    told: Told = (),
) -> None:
    """Let a run hold until somebody resumes it, with a budget question if one is given; `told` says why, once.

    What people asked for while the run came to its safe point counts: a pause taken back gives the run back, a stop
    ends it.
    """
    async with transaction(sessions, bell) as session:
        run = await owned(session, run_id, epoch)
        if run.status != RunStatus.RUNNING:
            return
        if question is None and run.requested == Request.NONE:
            await _give_back(session, run, lease_seconds)
            return
        _tell(session, run, told)
        if question is not None and run.requested != Request.STOP:
            _ask(session, run, QuestionKind.BUDGET, question)
        await _hold(session, run, RunStatus.PAUSED, "run.paused", reason, lease_seconds)


async def wait(
    sessions: Sessions,
    bell: Bell,
    run_id: UUID,
    epoch: int,
    *,
    lease_seconds: float,
    interrupts: Mapping[str, str] | None = None,
) -> bool:
    """Let a run wait for its open questions; False when all of them are answered already.

    `interrupts` are questions that a graph asked by LangGraph's `interrupt()`: text by the interrupt's id.
    """
    async with transaction(sessions, bell) as session:
        run = await owned(session, run_id, epoch)
        for identity, said in (interrupts or {}).items():
            key = interrupt_key(identity)
            known = await session.scalar(select(Question.id).where(Question.run_id == run.id, Question.key == key))
            if known is None:
                _ask(session, run, QuestionKind.CLARIFICATION, {"key": key, "text": said})
        await session.flush()
        still_open = await session.scalar(
            select(func.count()).where(Question.run_id == run.id, Question.status == QuestionStatus.OPEN)
        )
        if not still_open or run.status != RunStatus.RUNNING:
            return False
        await _hold(session, run, RunStatus.WAITING, "run.waiting", "question", lease_seconds)
        return True


def _ask(session: AsyncSession, run: ProjectRun, kind: QuestionKind, question: Mapping[str, Any]) -> None:
    asked = Question(
        tenant_id=run.tenant_id,
        run_id=run.id,
        key=question["key"],
        kind=kind,
        asked_by="engine",
        text=question["text"],
        options=list(question.get("options", ())),
        on_expiry=ExpiryAction.STOP,
        status=QuestionStatus.OPEN,
    )
    session.add(asked)
    payload = {"key": asked.key, "question_kind": str(kind), "text": asked.text, "options": asked.options}
    events.record(session, run, "question.asked", payload | {"asked_by": "engine"}, source="engine")


async def _hold(
    session: AsyncSession, run: ProjectRun, status: RunStatus, event: str, reason: str, lease_seconds: float
) -> None:
    if run.requested == Request.STOP:
        code, message = await _why_stopped(session, run)
        await end_run(session, run, RunStatus.STOPPED_USER, code=code, message=message)
    else:
        run.status = transition(MOVES, RunStatus(run.status), status, what=f"Run {run.number}")
        if status is RunStatus.PAUSED:
            run.requested = Request.NONE
        run.stop_reason, run.claims = reason, 0
        run.version += 1
        events.record(session, run, event, {"reason": reason}, source="engine")
    await session.flush()
    await session.execute(_WORKED, {"run": run.id, "ttl": lease_seconds, "again": False})


async def end(
    sessions: Sessions,
    bell: Bell,
    run_id: UUID,
    epoch: int,
    status: RunStatus,
    *,
    code: str,
    message: str,
    lease_seconds: float,
    told: Told = (),
    distrusted: tuple[str, int] | None = None,
) -> None:
    """End a run whose graph did not: with a report of what is done so far, made from its rows; `told` says why.

    Of a stop, what was asked for last says why. A visit that is `distrusted`, node and number, asks again in a retry
    for the replies that it could not use.
    """
    async with transaction(sessions, bell) as session:
        run = await owned(session, run_id, epoch)
        if run.status == RunStatus.RUNNING:
            _tell(session, run, told)
            if distrusted is not None:
                await _distrust(session, run_id, *distrusted)
            if status is RunStatus.STOPPED_USER:
                code, message = await _why_stopped(session, run)
            await end_run(session, run, status, code=code, message=message)
            await session.flush()
            await session.execute(_WORKED, {"run": run_id, "ttl": lease_seconds, "again": False})


async def tell(sessions: Sessions, bell: Bell, run_id: UUID, epoch: int, told: Told) -> None:
    """Record events of the run, all at once."""
    async with transaction(sessions, bell) as session:
        _tell(session, await owned(session, run_id, epoch), told)


def _tell(session: AsyncSession, run: ProjectRun, told: Told) -> None:
    for event_type, payload in told:
        events.record(session, run, event_type, payload, source="engine")


async def _distrust(session: AsyncSession, run_id: UUID, node: str, visit: int) -> None:
    await session.execute(
        update(ModelCall)
        .where(ModelCall.run_id == run_id, ModelCall.node == node, ModelCall.visit == visit)
        .values(replayable=False)
    )


async def end_run(session: AsyncSession, run: ProjectRun, status: RunStatus, *, code: str, message: str) -> None:
    """End a run whose row the caller has locked, with a report made from its rows; its project is free again."""
    run.status = transition(MOVES, RunStatus(run.status), status, what=f"Run {run.number}")
    run.requested, run.stop_reason, run.error = Request.NONE, code, message
    run.ended_at = func.clock_timestamp()
    run.version += 1
    run.final_report = await report_of(session, run, status, message)
    for question in await session.scalars(
        select(Question).where(Question.run_id == run.id, Question.status == QuestionStatus.OPEN).with_for_update()
    ):
        question.status = QuestionStatus.WITHDRAWN
    project = await session.get_one(Project, run.project_id, with_for_update={"key_share": True})
    if project.active_run_id == run.id:
        project.active_run_id = None
        project.version += 1
    if project.status == ProjectStatus.RUNNING:
        project.status = ProjectStatus.COMPLETED if status is RunStatus.COMPLETED else ProjectStatus.FAILED
    events.record(session, run, ENDING_EVENT[status], {"reason": message, "code": code}, source="engine")
