"""Makes good for what was lost: rings again for runs that nobody holds, and closes questions that are past due.

Idempotent; runs in every worker and api process at once, a few seconds apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from uuid import UUID

from sqlalchemy import TextClause, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db.engine import AWAY, DRIVER, Sessions, ring_after_commit, transaction
from backend.adapters.db.tables import ProjectRun, Question
from backend.domain.ports import Bell
from backend.domain.question import ExpiryAction, QuestionStatus
from backend.domain.run import RunStatus
from backend.errors import Conflict
from backend.operations import events, runs

_log = logging.getLogger(__name__)
AGAIN_SECONDS = 15.0
"""How long a process waits before it rings a second time for a run that nobody has claimed since."""
PATIENCE_SECONDS = 5.0
"""How long a doorbell may be on its way while workers take up other runs."""
_MOST = 500
_OLDEST = 64
_FORGOTTEN = text(
    "(SELECT id, lease_epoch FROM project_runs"
    " WHERE status = 'RUNNING' AND coalesce(lease_expires_at < clock_timestamp(), true) ORDER BY queued_at LIMIT :most)"
    " UNION ALL"
    " (SELECT id, lease_epoch FROM project_runs WHERE status = 'QUEUED'"
    " AND queued_at < clock_timestamp() - make_interval(secs => CASE WHEN EXISTS (SELECT FROM project_runs"
    " WHERE status = 'RUNNING' AND started_at > clock_timestamp() - make_interval(secs => :grace))"
    " THEN :patience ELSE :grace END) ORDER BY queued_at LIMIT :oldest)"
)
"""Runs whose lease ran out, and the oldest of those whose doorbell seems lost.

While workers take up other runs the bells of a long queue are on their way: ringing for all of them again would only
make it longer. Nothing is forgotten by that: those that are rung for are taken up, and others are the oldest then.
"""
_PAST_DUE = text("SELECT run_id, id FROM questions WHERE status = 'OPEN' AND due_at < clock_timestamp() LIMIT :most")
_TO_STOP = text(
    "SELECT r.id, r.tenant_id, e.payload ->> 'by' AS by, e.payload ->> 'reason' AS reason, e.payload ->> 'code' AS code"
    " FROM project_runs r LEFT JOIN LATERAL (SELECT payload FROM events WHERE run_id = r.id"
    " AND type = 'run.stop_requested' ORDER BY seq DESC LIMIT 1) e ON true"
    " WHERE r.status = 'RUNNING' AND r.requested = 'stop' AND coalesce(r.lease_expires_at < clock_timestamp(), true)"
    " LIMIT :most"
)
_ANSWERED = text(
    "SELECT r.id FROM project_runs r WHERE r.status = 'WAITING' AND NOT EXISTS"
    " (SELECT FROM questions q WHERE q.run_id = r.id AND q.status = 'OPEN') LIMIT :most"
)


class Reaper:
    """The loop of one process."""

    def __init__(self, sessions: Sessions, bell: Bell, *, every: float) -> None:
        self._sessions, self._bell, self._every = sessions, bell, every
        self._rung: dict[tuple[UUID, int], float] = {}

    async def run(self) -> None:
        """Reap until cancelled; a database that is away costs a warning and a round."""
        while True:
            try:
                await self.reap()
            except AWAY as error:
                _log.warning("A round of the reaper failed: %s", error)
            await asyncio.sleep(self._every)

    async def reap(self) -> None:
        """One round."""
        await self._ring()
        await self._each(_PAST_DUE, _expire)
        await self._each(_ANSWERED, _requeue_answered)
        await self._each(_TO_STOP, _stop_abandoned)

    async def _ring(self) -> None:
        async with self._sessions() as session:
            asked = {"grace": self._every, "patience": max(self._every, PATIENCE_SECONDS), "oldest": _OLDEST}
            found = await session.execute(_FORGOTTEN, asked | {"most": _MOST})
            forgotten = [(row.id, row.lease_epoch) for row in found]
        now = time.monotonic()
        self._rung = {claim: at for claim, at in self._rung.items() if now - at < AGAIN_SECONDS}
        for claim in forgotten:
            if claim not in self._rung:
                self._rung[claim] = now
                self._bell.ring(claim[0])

    async def _each(self, listed: TextClause, work: Callable[..., Awaitable[None]]) -> None:
        """Look after each run that is listed first in its row, in a transaction of its own.

        What is wrong with one of them keeps nobody from looking after the others.
        """
        async with self._sessions() as session:
            rows = (await session.execute(listed, {"most": _MOST})).all()
        for row in rows:
            try:
                async with transaction(self._sessions, self._bell) as session:
                    await work(session, *row)
            except Exception as error:  # noqa: BLE001 - one run never keeps the others from being looked after
                away = isinstance(error, (OSError, TimeoutError, *DRIVER))
                if away or getattr(error, "connection_invalidated", False):
                    raise
                _log.exception("The reaper could not look after the run %s.", row[0])


async def locked(session: AsyncSession, run_id: UUID) -> ProjectRun:
    """The run as it is now; its row is ours until the transaction ends."""
    return await session.get_one(ProjectRun, run_id, with_for_update={"key_share": True}, populate_existing=True)


async def _expire(session: AsyncSession, run_id: UUID, question_id: UUID) -> None:
    run = await locked(session, run_id)
    question = await session.get_one(Question, question_id, with_for_update=True, populate_existing=True)
    if question.status != QuestionStatus.OPEN:
        return
    takes_default = question.on_expiry == ExpiryAction.DEFAULT and question.default is not None
    question.status = QuestionStatus.EXPIRED
    question.answered_at = func.clock_timestamp()
    if takes_default:
        question.answer, question.answered_by = question.default, "expiry"
    events.record(session, run, "question.expired", {"key": question.key, "default": takes_default}, source="engine")
    await session.flush()
    if takes_default:
        await go_on(session, run)
    else:
        ending = runs.Stop(
            f"Nobody answered the question {question.key} before it was due; fork the run to answer it.",
            "question_expired",
        )
        by = f"expiry of the question {question.key}"
        await runs.stop(session, run_id, by=by, ending=ending, tenant_id=run.tenant_id)


async def _requeue_answered(session: AsyncSession, run_id: UUID) -> None:
    await go_on(session, await locked(session, run_id))


async def _stop_abandoned(
    session: AsyncSession, run_id: UUID, tenant_id: UUID, by: str | None, reason: str | None, code: str | None
) -> None:
    """End a run that was to stop and whose worker died before it obeyed; no other worker is needed for that."""
    ending = runs.Stop(reason, code) if reason and code else None
    with contextlib.suppress(Conflict):
        await runs.stop(session, run_id, by=by or "somebody", ending=ending, tenant_id=tenant_id)


async def go_on(session: AsyncSession, run: ProjectRun) -> None:
    """Put a run back into the queue that waits for nothing any more; the caller holds its row lock."""
    still_open = await session.scalar(
        select(func.count()).where(Question.run_id == run.id, Question.status == QuestionStatus.OPEN)
    )
    if run.status == RunStatus.WAITING and not still_open:
        asked = run.requested
        runs.requeue(session, run)
        run.requested = asked
        run.version += 1
        ring_after_commit(session, run.id)
