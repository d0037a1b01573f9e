"""Taking up runs: one statement makes a run ours (`taking`); what an earlier owner left is put in order after it.

Everything after that statement is done under the new epoch. A worker that dies in between leaves a run whose lease runs
out, and whoever claims it next finds the same work to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db.checkpointer import LeaseLost
from backend.adapters.db.engine import Sessions, transaction
from backend.adapters.db.tables import DeadLetter, ProjectRun
from backend.domain.config import RunConfig
from backend.domain.ports import Bell
from backend.domain.question import Answer
from backend.domain.run import Request, RunFacts, RunStatus
from backend.engine import claims
from backend.engine.prompts import Library
from backend.engine.taking import Taker
from backend.operations import ledger

_POISONED = text(
    "SELECT id FROM project_runs WHERE id = :run AND claims >= :most AND status = 'RUNNING'"
    " AND coalesce(lease_expires_at < clock_timestamp(), true) FOR NO KEY UPDATE"
)


@dataclass(frozen=True, slots=True)
class Claimed:
    """A run as it was when it was taken up."""

    facts: RunFacts
    graph: str
    graph_version: str
    pins: str
    """The prompts it is pinned to, for `Library.open`."""
    epoch: int
    head: UUID | None
    requested: Request
    seconds_left: float | None
    limit_seconds: int | None
    timed: bool
    """Whether it shares a limit in seconds with other runs."""
    answers: Mapping[str, Answer]
    waived: frozenset[str]
    """Findings that a person waived, as long as the waiver holds, or called false."""
    degraded: bool
    asks: bool
    """Whether a question that the graph asked is open: then nothing is driven until it is answered."""
    claims: int = 1
    """How often the run was taken up since it last got on, this time included."""


async def claim(
    sessions: Sessions,
    pool: Any,
    bell: Bell,
    run_id: UUID,
    *,
    owner: str,
    lease_seconds: float,
    max_claims: int,
    library: Library,
    taker: Taker | None = None,
) -> Claimed | None:
    """Take a run up: once for each epoch, whoever asks at once; None when there is nothing to do.

    Settles what an earlier owner left in flight, and pins the run to the prompts of `library` unless it is pinned. A
    run that was claimed too often without finishing a node is buried; one whose settings this version cannot read, or
    that asks for prompts which are not here, ends as FAILED. A `taker` that is given decides how often it may have
    been claimed, and takes it together with others.
    """
    taker = taker or Taker(pool, owner=owner, lease_seconds=lease_seconds, most=max_claims, pins=library.pins)
    row = await taker.take(run_id)
    if row is None:
        await _bury_if_poisoned(sessions, bell, run_id, max_claims)
        return None
    bell.wake(run_id)
    try:
        return await _put_in_order(sessions, bell, run_id, row, library)
    except LeaseLost:
        # Frozen in between for longer than the lease: somebody else does all of it.
        return None


async def _put_in_order(
    sessions: Sessions, bell: Bell, run_id: UUID, row: Mapping[str, Any], library: Library
) -> Claimed | None:
    """Read what the run's past says, settle what it left open, pin its prompts, and make the budgets that it needs."""
    if row["held"]:
        async with transaction(sessions, bell) as session:
            await ledger.settle_lost(session, await claims.owned(session, run_id, row["lease_epoch"]))
    try:
        config = _config(row["config"])
    except ValueError as error:
        unreadable = f"The settings of run {row['number']} cannot be read by this version: {error}"
        await _refuse(sessions, bell, run_id, row["lease_epoch"], "config_invalid", unreadable)
        return None
    missing = library.own.missing(config) if row["pins"] is None else None
    if missing is not None:
        await _refuse(sessions, bell, run_id, row["lease_epoch"], "prompt_gone", missing)
        return None
    pins = row["pins"] or await library.pin(run_id, row["lease_epoch"])
    if row["capped"] or config.budget.roles:
        async with transaction(sessions, bell) as session:
            await ledger.open_budgets(session, row["tenant_id"], run_id, config)
    return _claimed(run_id, row, config, pins)


@lru_cache(maxsize=256)
def _config(snapshot: str) -> RunConfig:
    """The settings of a run; runs of one template share them, and nothing changes them."""
    return RunConfig.model_validate_json(snapshot)


def _claimed(run_id: UUID, row: Mapping[str, Any], config: RunConfig, pins: str) -> Claimed:
    answers = orjson.loads(row["answers"] or "{}")
    return Claimed(
        facts=RunFacts(
            run_id=run_id,
            project_id=row["project_id"],
            tenant_id=row["tenant_id"],
            number=row["number"],
            project_name=row["project_name"],
            brief=row["brief"],
            config=config,
            created_at=row["created_at"],
            correlation_id=row["correlation_id"],
        ),
        graph=row["graph"],
        graph_version=row["graph_version"],
        pins=pins,
        epoch=row["lease_epoch"],
        head=row["head"],
        requested=Request(row["requested"]),
        seconds_left=row["seconds_left"],
        limit_seconds=row["limit_seconds"],
        timed=row["timed"],
        answers={key: Answer(key, *said) for key, said in answers.items()},
        waived=frozenset(row["waived"] or ()),
        degraded=bool(row["degraded"]),
        asks=bool(row["asks"]),
        claims=row["claims"],
    )


async def _refuse(sessions: Sessions, bell: Bell, run_id: UUID, epoch: int, code: str, why: str) -> None:
    async with transaction(sessions, bell) as session:
        run = await claims.owned(session, run_id, epoch)
        await claims.end_run(session, run, RunStatus.FAILED, code=code, message=why)
        run.lease_owner, run.lease_expires_at = None, None


async def _bury_if_poisoned(sessions: Sessions, bell: Bell, run_id: UUID, max_claims: int) -> None:
    async with transaction(sessions, bell) as session:
        if (await session.execute(_POISONED, {"run": run_id, "most": max_claims})).one_or_none():
            await _bury(session, run_id)


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
    await claims.end_run(session, run, RunStatus.FAILED, code="poisoned", message=message)
    run.lease_owner, run.lease_expires_at = None, None
