"""What runs ask people: read it, and answer it once."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db.engine import ring_after_commit
from backend.adapters.db.tables import ProjectRun, Question
from backend.domain.budget import Limit, limit_asked_for, read_raise
from backend.domain.ids import DEFAULT_TENANT
from backend.domain.question import QuestionKind, QuestionStatus
from backend.domain.run import RunStatus
from backend.errors import Conflict, Fault, Invalid
from backend.operations import events, ledger, pages, runs

VIEW = pages.View(Question, leave_out=frozenset({"tenant_id"}))
MAX_ANSWER = 20_000
STOP = "stop"
"""The answer to a budget question that ends the run instead of raising the limit."""


async def get(session: AsyncSession, question_id: UUID, *, tenant_id: UUID = DEFAULT_TENANT) -> Question:
    """The question. Raises `NotFound`."""
    return await pages.owned(session, Question, question_id, tenant_id, "question")


async def page(
    session: AsyncSession,
    wanted: pages.PageRequest,
    *,
    tenant_id: UUID = DEFAULT_TENANT,
    run_id: UUID | None = None,
    status: QuestionStatus | None = None,
) -> pages.Page:
    """A page of the questions that fit, newest first."""
    return await VIEW.page(session, wanted, *pages.fitting(Question, tenant_id, run_id=run_id, status=status))


async def answer(
    session: AsyncSession, question_id: UUID, text: str, *, by: str, tenant_id: UUID = DEFAULT_TENANT
) -> Question:
    """Answer an open question; once none is open, its run goes back into the queue.

    The answer to a budget question raises the run's limit (`1.50 usd`), or is `stop`. Raises `Conflict` when it is no
    longer open, `Invalid` for an answer that is not among the options.
    """
    found = await get(session, question_id, tenant_id=tenant_id)
    run = await runs.get(session, found.run_id, tenant_id=tenant_id, lock=True)
    question = await session.get_one(Question, question_id, with_for_update=True, populate_existing=True)
    if question.status != QuestionStatus.OPEN:
        who = f" by {question.answered_by}" if question.answered_by else ""
        raise Conflict(f"The question {question.key} is already {question.status}{who}; it is answered once.")
    chosen = _choose(question, text)
    limit = limit_asked_for(question.key)
    is_raise = question.kind == QuestionKind.BUDGET and chosen != STOP
    raised = read_raise(chosen, limit.unit if limit is not None else None) if is_raise else None
    others = await session.scalar(
        select(func.count()).where(
            Question.run_id == run.id, Question.status == QuestionStatus.OPEN, Question.id != question_id
        )
    )
    question.status, question.answer, question.answered_by = QuestionStatus.ANSWERED, chosen, by
    question.answered_at = func.clock_timestamp()
    events.record(session, run, "question.answered", {"key": question.key, "kind": question.kind, "by": by})
    if question.kind == QuestionKind.BUDGET and chosen == STOP:
        await session.flush()
        await runs.stop(session, run.id, by=by, tenant_id=tenant_id)
        return question
    if raised is not None:
        await session.flush()
        asked = limit or Limit("run", "all", raised.unit)
        await ledger.raise_limit(session, run, Limit(asked.scope, asked.name, raised.unit), raised.amount)
    if not others:
        _go_on(session, run, question)
    await session.flush()
    return question


def _choose(question: Question, text: str) -> str:
    text = text.strip()
    if not text or len(text) > MAX_ANSWER:
        right = f"1 to {MAX_ANSWER:,} characters"
        raise Invalid(f"An answer has {right}.", faults=[Fault("/answer", right)])
    if question.kind == QuestionKind.BUDGET:
        return STOP if text.lower() == STOP else text
    options = {str(option).casefold(): str(option) for option in question.options}
    if options and text.casefold() not in options:
        right = "one of: " + ", ".join(options.values())
        raise Invalid(f"The answer to {question.key} is {right}.", faults=[Fault("/answer", right)])
    return options.get(text.casefold(), text)


def _go_on(session: AsyncSession, run: ProjectRun, answered: Question) -> None:
    """Queue the run again if it waits, for nothing more; a run that works at the moment sees the answer later."""
    held = run.status == RunStatus.WAITING or (run.status == RunStatus.PAUSED and answered.kind == QuestionKind.BUDGET)
    if held:
        asked_to_pause = run.requested
        runs.requeue(session, run)
        run.requested = asked_to_pause
        run.version += 1
        ring_after_commit(session, run.id)
