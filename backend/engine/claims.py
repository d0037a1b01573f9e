"""Taking up runs and giving them back: claim, hold, release, end, bury; each one fenced transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, Boolean, Text, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db.checkpointer import LeaseLost
from backend.adapters.db.columns import CleanJson
from backend.adapters.db.engine import Sessions, ring_after_commit, transaction
from backend.adapters.db.tables import DeadLetter, Event, ModelCall, Project, ProjectRun, Question
from backend.domain.config import RunConfig
from backend.domain.event import ENDING_EVENT
from backend.domain.lifecycle import transition
from backend.domain.ports import Bell
from backend.domain.project import MOVES as PROJECT_MOVES
from backend.domain.project import ProjectStatus
from backend.domain.question import Answer, ExpiryAction, QuestionKind, QuestionStatus
from backend.domain.run import MOVES, Request, RunFacts, RunStatus
from backend.engine.report import report_of
from backend.operations import events, ledger

_CLAIM = text(
    "UPDATE project_runs SET status = 'RUNNING', lease_epoch = lease_epoch + 1, lease_owner = :owner,"
    " lease_expires_at = clock_timestamp() + make_interval(secs => :ttl), claims = claims + 1,"
    " updated_at = clock_timestamp(), version = version + 1"
    " WHERE id = :run AND claims < :most AND claims < :upto AND (status = 'QUEUED'"
    " OR (status = 'RUNNING' AND coalesce(lease_expires_at < clock_timestamp(), true)))"
    " RETURNING old.status AS was, old.lease_owner AS before"
)
_POISONED = text(
    "SELECT id FROM project_runs WHERE id = :run AND claims >= :most AND status = 'RUNNING'"
    " AND coalesce(lease_expires_at < clock_timestamp(), true) FOR NO KEY UPDATE"
)
_WORKED = text(
    "UPDATE project_runs SET spent_seconds = spent_seconds + greatest(0, coalesce(extract(epoch FROM"
    " clock_timestamp() - lease_expires_at + make_interval(secs => :ttl)), 0))::numeric(14, 6),"
    " lease_owner = NULL, lease_expires_at = CASE WHEN :again THEN clock_timestamp() END WHERE id = :run"
)
_HELD = (
    select(ModelCall.id).where(ModelCall.run_id == ProjectRun.id, ModelCall.status == "reserved").exists().label("held")
)
_KNOWN = text(
    "SELECT coalesce((SELECT jsonb_object_agg(key, jsonb_build_array(answer, coalesce(answered_by, ''))) FROM questions"
    " WHERE run_id = :run AND answer IS NOT NULL), '{}') AS answers,"
    " ARRAY(SELECT fingerprint FROM findings WHERE run_id = :run AND (status = 'false_positive'"
    " OR (status = 'waived' AND waived_until > clock_timestamp()))) AS waived,"
    " EXISTS (SELECT FROM events WHERE run_id = :run AND type = 'budget.degraded') AS degraded,"
    " EXISTS (SELECT FROM questions WHERE run_id = :run AND status = 'OPEN' AND kind <> 'budget'"
    " AND key NOT LIKE :interrupts) AS asks"
).columns(answers=CleanJson, waived=ARRAY(Text), degraded=Boolean, asks=Boolean)


@dataclass(frozen=True, slots=True)
class Claimed:
    """A run as it was when it was taken up."""

    facts: RunFacts
    graph: str
    graph_version: str
    epoch: int
    head: UUID | None
    requested: Request
    answers: Mapping[str, Answer]
    waived: frozenset[str]
    """Findings that a person waived, as long as the waiver holds, or called false."""
    degraded: bool
    asks: bool
    """Whether a question that the graph asked is open: then nothing is driven until it is answered."""
    seconds_left: float | None
    limit_seconds: int | None
    claims: int = 1
    """How often the run was taken up since it last got on, this time included."""


async def claim(
    sessions: Sessions,
    bell: Bell,
    run_id: UUID,
    *,
    owner: str,
    lease_seconds: float,
    max_claims: int,
    upto: int | None = None,
) -> Claimed | None:
    """Take a run up: once for each epoch, whoever asks at once; None when there is nothing to do.

    Settles what an earlier owner left in flight. A run that was claimed too often without finishing a node is buried;
    one whose settings this version cannot read ends as FAILED. One that was claimed `upto` times is left alone.
    """
    async with transaction(sessions, bell) as session:
        values = {"run": run_id, "owner": owner, "ttl": lease_seconds, "most": max_claims, "upto": upto or max_claims}
        taken = (await session.execute(_CLAIM, values)).one_or_none()
        if taken is None:
            if (await session.execute(_POISONED, {"run": run_id, "most": max_claims})).one_or_none():
                await _bury(session, run_id)
            return None
        # The row is locked by the claim itself.
        found = await session.execute(
            select(ProjectRun, Project, _HELD)
            .join(Project, Project.id == ProjectRun.project_id)
            .where(ProjectRun.id == run_id)
        )
        run, project, held = found.one()
        if taken.was == RunStatus.RUNNING:
            events.record(session, run, "run.lease_lost", {"owner": taken.before}, source="engine")
        if held:
            await ledger.settle_lost(session, run)
        _tell_of_claim(session, run, project)
        await session.flush()
        try:
            config = RunConfig.model_validate(run.config_snapshot)
        except ValueError as error:
            message = f"The settings of run {run.number} cannot be read by this version: {error}"
            await _end(session, run, RunStatus.FAILED, code="config_invalid", message=message)
            run.lease_owner, run.lease_expires_at = None, None
            return None
        return await _look(session, run, project, config)


def _tell_of_claim(session: AsyncSession, run: ProjectRun, project: Project) -> None:
    if project.status != ProjectStatus.RUNNING:
        project.status = transition(
            PROJECT_MOVES, ProjectStatus(project.status), ProjectStatus.RUNNING, what=f"Project {project.name}"
        )
        project.version += 1
    first = run.started_at is None
    if first:
        run.started_at = func.clock_timestamp()
    told = "run.started" if first else "run.resumed"
    payload = {"owner": run.lease_owner, "epoch": run.lease_epoch, "node": run.current_node}
    events.record(session, run, told, payload, source="engine")


async def _look(session: AsyncSession, run: ProjectRun, project: Project, config: RunConfig) -> Claimed:
    await ledger.open_budgets(session, run, config)
    known = (await session.execute(_KNOWN, {"run": run.id, "interrupts": interrupt_key("%")})).one()
    left = None if run.limit_seconds is None else float(run.limit_seconds - run.spent_seconds)
    return Claimed(
        facts=RunFacts(
            run_id=run.id,
            project_id=run.project_id,
            tenant_id=run.tenant_id,
            number=run.number,
            project_name=project.name,
            brief=run.brief,
            config=config,
            created_at=run.created_at,
            correlation_id=run.correlation_id,
        ),
        graph=run.graph,
        graph_version=run.graph_version,
        epoch=run.lease_epoch,
        head=run.head_checkpoint_id,
        requested=Request(run.requested),
        answers={key: Answer(key, *said) for key, said in known.answers.items()},
        waived=frozenset(known.waived),
        degraded=known.degraded,
        asks=known.asks,
        seconds_left=left,
        limit_seconds=run.limit_seconds,
        claims=run.claims,
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


async def _owned(session: AsyncSession, run_id: UUID, epoch: int) -> ProjectRun:
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
        run = await _owned(session, run_id, epoch)
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
        run = await _owned(session, run_id, epoch)
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
        run = await _owned(session, run_id, epoch)
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


def interrupt_key(identity: str) -> str:
    """The key of the question that stands for an interrupt."""
    return f"interrupt/{identity}"


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
        await _end(session, run, RunStatus.STOPPED_USER, code=code, message=message)
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
        run = await _owned(session, run_id, epoch)
        if run.status == RunStatus.RUNNING:
            _tell(session, run, told)
            if distrusted is not None:
                await _distrust(session, run_id, *distrusted)
            if status is RunStatus.STOPPED_USER:
                code, message = await _why_stopped(session, run)
            await _end(session, run, status, code=code, message=message)
            await session.flush()
            await session.execute(_WORKED, {"run": run_id, "ttl": lease_seconds, "again": False})


async def tell(sessions: Sessions, bell: Bell, run_id: UUID, epoch: int, told: Told) -> None:
    """Record events of the run, all at once."""
    async with transaction(sessions, bell) as session:
        _tell(session, await _owned(session, run_id, epoch), told)


def _tell(session: AsyncSession, run: ProjectRun, told: Told) -> None:
    for event_type, payload in told:
        events.record(session, run, event_type, payload, source="engine")


async def _distrust(session: AsyncSession, run_id: UUID, node: str, visit: int) -> None:
    await session.execute(
        update(ModelCall)
        .where(ModelCall.run_id == run_id, ModelCall.node == node, ModelCall.visit == visit)
        .values(replayable=False)
    )


async def _end(session: AsyncSession, run: ProjectRun, status: RunStatus, *, code: str, message: str) -> None:
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


async def _bury(session: AsyncSession, run_id: UUID) -> None:
    run = await session.get_one(ProjectRun, run_id, with_for_update={"key_share": True}, populate_existing=True)
    run.lease_epoch += 1
    await session.flush()
    await ledger.settle_lost(session, run)
    last = run.error or "the worker died each time"
    message = (
        f"The run was taken up {run.claims} times without finishing the node {run.current_node or 'it begins with'}: "
        f"{last}. Look at the worker's log, then retry the run."
    )
    letter = {"tenant_id": run.tenant_id, "run_id": run.id, "kind": "run", "node": run.current_node}
    session.add(DeadLetter(**letter, lease_epoch=run.lease_epoch, error=message, payload={"run_id": str(run.id)}))
    await _end(session, run, RunStatus.FAILED, code="poisoned", message=message)
    run.lease_owner, run.lease_expires_at = None, None
