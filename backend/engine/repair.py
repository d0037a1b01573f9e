"""What `company doctor --repair` mends: a table of rules, each of which finds what is broken and puts one thing right.

A rule looks again under the row lock before it writes, so that it mends nothing that went on meanwhile, and doing it
twice is the same as once. Totals come from the ledger and from nowhere else; an event says what they were before. What
no rule knows is left for people to look at: it is never guessed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db.engine import Sessions, ring_after_commit, transaction
from backend.adapters.db.tables import DeadLetter, Project, ProjectRun
from backend.domain.ports import Bell
from backend.domain.run import ENDED
from backend.engine.leftovers import Leftovers
from backend.engine.reaper import go_on, locked
from backend.operations import events, invariants, ledger

_MOST = 1_000


@dataclass(frozen=True, slots=True)
class Repaired:
    """One thing that a rule put right, or would."""

    rule: str
    about: str
    told: str


Mend = Callable[[AsyncSession, UUID], Awaitable[str | None]]
"""Puts one thing right in a transaction of its own; returns what it did, None when there is nothing to do any more."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What is looked for, and what is done about it; `offences` lists ids of runs or, for projects, of those."""

    name: str
    sentence: str
    offences: str
    mend: Mend


async def _ring(session: AsyncSession, run_id: UUID) -> str | None:
    ring_after_commit(session, run_id)
    return "rung for again"


async def _release_reservations(session: AsyncSession, run_id: UUID) -> str | None:
    run = await locked(session, run_id)
    if run.status in ENDED:
        # Whoever held them has nothing to write any more: its epoch is over with the run.
        run.lease_epoch += 1
        await session.flush()
    settled = await ledger.settle_lost(session, run)
    return f"{settled} calls in flight booked or given back" if settled else None


_TOTALS = text(
    "SELECT coalesce(sum(tokens_input), 0) AS spent_tokens_input, coalesce(sum(tokens_output), 0) AS"
    " spent_tokens_output, coalesce(sum(tokens_cached), 0) AS spent_tokens_cached, coalesce(sum(cost_usd), 0) AS"
    " spent_usd, coalesce(sum(reserved_tokens) FILTER (WHERE status = 'reserved'), 0) AS reserved_tokens,"
    " coalesce(sum(reserved_usd) FILTER (WHERE status = 'reserved'), 0) AS reserved_usd"
    " FROM model_calls WHERE run_id = :run"
)
_ROLES = text(
    "UPDATE budgets b SET spent_tokens = s.tokens, spent_usd = s.usd, reserved_tokens = s.held,"
    " reserved_usd = s.held_usd, spent_seconds = s.seconds, reserved_seconds = s.held_seconds"
    " FROM (SELECT o.id, coalesce(sum(c.tokens_input + c.tokens_output), 0) AS tokens, coalesce(sum(c.cost_usd), 0) AS"
    " usd, coalesce(sum(c.reserved_tokens) FILTER (WHERE c.status = 'reserved'), 0) AS held,"
    " coalesce(sum(c.reserved_usd) FILTER (WHERE c.status = 'reserved'), 0) AS held_usd, coalesce(sum(c.seconds), 0)"
    " AS seconds, coalesce(sum(c.reserved_seconds) FILTER (WHERE c.status = 'reserved'), 0) AS held_seconds"
    " FROM budgets o"
    " LEFT JOIN model_calls c ON c.run_id = o.owner_id AND c.role = o.name"
    " WHERE o.scope = 'run_role' AND o.owner_id = :run GROUP BY o.id) s"
    " WHERE b.id = s.id AND (b.spent_tokens, b.spent_usd, b.reserved_tokens, b.reserved_usd, b.spent_seconds,"
    " b.reserved_seconds) IS DISTINCT FROM (s.tokens::bigint, s.usd, s.held::bigint, s.held_usd, s.seconds,"
    " s.held_seconds) RETURNING b.name"
)


async def _recount(session: AsyncSession, run_id: UUID) -> str | None:
    run = await locked(session, run_id)
    summed = (await session.execute(_TOTALS, {"run": run_id})).mappings().one()
    before = {name: getattr(run, name) for name, value in summed.items() if getattr(run, name) != value}
    after = {name: summed[name] for name in before}
    for name, value in after.items():
        setattr(run, name, value if name.endswith("usd") else int(value))
    roles = list(await session.scalars(_ROLES, {"run": run_id}))
    if not before and not roles:
        return None
    return _told(session, run, "totals", before, after, {"roles": sorted(roles)} if roles else {})


_OF_RUNS = text("SELECT coalesce(sum(spent_usd), 0) FROM project_runs WHERE project_id = :project")


async def _recount_project(session: AsyncSession, project_id: UUID) -> str | None:
    # First the runs, then the project, as everywhere: while a run books, its project waits.
    await session.execute(
        select(ProjectRun.id).where(ProjectRun.project_id == project_id).order_by(ProjectRun.id).with_for_update()
    )
    project = await session.get_one(Project, project_id, with_for_update={"key_share": True}, populate_existing=True)
    summed = await session.scalar(_OF_RUNS, {"project": project_id})
    if project.spent_usd == summed:
        return None
    said = f"spent {project.spent_usd} -> {summed} USD"
    project.spent_usd = summed
    told = {"name": project.name, "version": project.version, "by": "doctor", "repaired": said}
    events.record_for_project(session, project, "project.changed", told, source="engine")
    return said


async def _let_go(session: AsyncSession, run_id: UUID) -> str | None:
    run = await locked(session, run_id)
    if run.status == "RUNNING" or (run.lease_owner is None and run.claims == 0):
        return None
    if run.status in ENDED and run.lease_owner is None:
        return None
    before = {"lease_owner": run.lease_owner, "claims": run.claims}
    run.lease_epoch += 1
    run.lease_owner, run.lease_expires_at, run.claims = None, None, 0
    if run.status == "QUEUED":
        ring_after_commit(session, run_id)
    return _told(session, run, "lease", before, {"lease_owner": None, "claims": 0})


async def _end_grant(session: AsyncSession, run_id: UUID) -> str | None:
    run = await locked(session, run_id)
    if run.granted_until is None or (run.status == "RUNNING" and run.lease_owner is not None):
        return None
    before = {"granted_until": run.granted_until}
    # The database books a grant wherever a lease ends.
    run.lease_epoch += 1
    await session.flush()
    await session.refresh(run)
    return _told(session, run, "grant", before, {"granted_until": run.granted_until})


_GRANTED = text(
    "UPDATE budgets b SET reserved_seconds = (SELECT coalesce(sum(extract(epoch FROM granted_until - granted_at)), 0)"
    " FROM project_runs WHERE b.id = ANY (granted_budgets)) WHERE id = :budget RETURNING name, reserved_seconds"
)


async def _recount_granted(session: AsyncSession, budget_id: UUID) -> str | None:
    # Nobody gets a grant or gives one back meanwhile; whoever is about to has waited for the row before this sum.
    await session.execute(text("LOCK TABLE budgets IN EXCLUSIVE MODE"))
    name, held = (await session.execute(_GRANTED, {"budget": budget_id})).one()
    return f"{name} holds {held} seconds"


async def _name_active(session: AsyncSession, run_id: UUID) -> str | None:
    run = await locked(session, run_id)
    project = await session.get_one(Project, run.project_id, with_for_update={"key_share": True})
    active = await session.scalar(
        select(ProjectRun.id).where(ProjectRun.project_id == project.id, ProjectRun.status.not_in(ENDED))
    )
    if project.active_run_id == active:
        return None
    before = {"active_run_id": project.active_run_id}
    project.active_run_id = active
    project.version += 1
    return _told(session, run, "active run of the project", before, {"active_run_id": active})


async def _bury(session: AsyncSession, run_id: UUID) -> str | None:
    run = await locked(session, run_id)
    known = await session.scalar(select(DeadLetter.id).where(DeadLetter.run_id == run_id).limit(1))
    if known is not None:
        return None
    letter = {"tenant_id": run.tenant_id, "run_id": run.id, "kind": "run", "node": run.current_node}
    error = run.error or "The run was given up."
    session.add(DeadLetter(**letter, lease_epoch=run.lease_epoch, error=error, payload={"run_id": str(run.id)}))
    return _told(session, run, "dead letter", {}, {"dead_letter": "written"})


async def _go_on(session: AsyncSession, run_id: UUID) -> str | None:
    run = await locked(session, run_id)
    before = run.status
    await go_on(session, run)
    return None if run.status == before else _told(session, run, "status", {"status": before}, {"status": run.status})


def _told(
    session: AsyncSession, run: ProjectRun, what: str, before: dict[str, Any], after: dict[str, Any], more: Any = None
) -> str:
    """Record that a run was repaired, and say it in a line."""
    run.version += 1
    told = {name: None if value is None else str(value) for name, value in before.items()}
    became = {name: None if value is None else str(value) for name, value in after.items()}
    payload = {"what": what, "before": told, "after": became, **(more or {})}
    events.record(session, run, "run.repaired", payload, source="engine")
    changed = [f"{name} {told.get(name)} -> {became[name]}" for name in became]
    return ", ".join([*changed, *(f"role {name} counted anew" for name in (more or {}).get("roles", ()))])


RULES: tuple[Rule, ...] = (
    Rule(
        "reservations",
        "What is held for a call whose worker is gone is booked at its ceiling, or given back where nothing was sent.",
        "SELECT DISTINCT c.run_id FROM model_calls c JOIN project_runs r ON r.id = c.run_id WHERE c.status = 'reserved'"
        " AND (c.lease_epoch <> r.lease_epoch OR r.ended_at IS NOT NULL)",
        _release_reservations,
    ),
    Rule(
        "granted",
        "The time that was granted to a run which nobody holds is booked, and the rest given back.",
        "SELECT id FROM project_runs WHERE granted_until IS NOT NULL AND (status <> 'RUNNING' OR lease_owner IS NULL)",
        _end_grant,
    ),
    Rule(
        "held-seconds",
        "The time that projects and months hold becomes what their runs are granted.",
        "SELECT b.id FROM budgets b WHERE b.scope <> 'run_role' AND b.reserved_seconds <> (SELECT coalesce(sum(extract("
        "epoch FROM granted_until - granted_at)), 0) FROM project_runs WHERE b.id = ANY (granted_budgets))",
        _recount_granted,
    ),
    Rule(
        "totals",
        "Totals become the sum of the calls.",
        "SELECT DISTINCT run_id FROM v_ledger_check WHERE run_id IS NOT NULL",
        _recount,
    ),
    Rule(
        "project-totals",
        "What a project has spent becomes the sum of its runs.",
        "SELECT p.id FROM projects p LEFT JOIN project_runs r ON r.project_id = p.id GROUP BY p.id"
        " HAVING p.spent_usd <> coalesce(sum(r.spent_usd), 0)",
        _recount_project,
    ),
    Rule(
        "let-go",
        "Who holds a run that nobody drives loses it, and its claims begin anew.",
        "SELECT id FROM project_runs WHERE (ended_at IS NOT NULL AND lease_owner IS NOT NULL)"
        " OR (status IN ('QUEUED', 'PAUSED', 'WAITING') AND (claims > 0 OR lease_owner IS NOT NULL))",
        _let_go,
    ),
    Rule(
        "active",
        "A project names the run that is on its way, and no other.",
        "SELECT min(r.id::text)::uuid FROM projects p JOIN project_runs r ON r.project_id = p.id"
        " WHERE (r.ended_at IS NULL) <> (p.active_run_id IS NOT DISTINCT FROM r.id) GROUP BY p.id",
        _name_active,
    ),
    Rule(
        "buried",
        "A run that was given up as poisoned gets its dead letter.",
        "SELECT id FROM project_runs r WHERE status = 'FAILED' AND stop_reason = 'poisoned'"
        " AND NOT EXISTS (SELECT FROM dead_letters d WHERE d.run_id = r.id)",
        _bury,
    ),
    Rule(
        "answered",
        "A run that waits for nothing goes back into the queue.",
        "SELECT r.id FROM project_runs r WHERE r.status = 'WAITING' AND NOT EXISTS"
        " (SELECT FROM questions q WHERE q.run_id = r.id AND q.status = 'OPEN')",
        _go_on,
    ),
    Rule(
        "doorbells",
        "Workers are told again of runs that nobody holds.",
        "SELECT id FROM project_runs WHERE (status = 'QUEUED' AND queued_at < clock_timestamp() - make_interval(secs =>"
        " :grace)) OR (status = 'RUNNING' AND coalesce(lease_expires_at < clock_timestamp(), true))",
        _ring,
    ),
)
"""In the order in which they build on each other: calls, then the totals over them, then whom that concerns."""
MENDED_BY_WORKERS = frozenset({"stuck"})
"""Invariants that hold again once a worker has heard the bell."""


class Clinic:
    """The rules over one installation."""

    def __init__(self, sessions: Sessions, bell: Bell, home: Path, *, grace: float) -> None:
        """`grace`: seconds that a doorbell may be on its way."""
        self._sessions, self._bell, self._grace = sessions, bell, grace
        self._leftovers = Leftovers(sessions, home)

    async def mend(self, *, dry: bool) -> list[Repaired]:
        """Apply every rule in turn; with `dry`, only look."""
        done: list[Repaired] = []
        for rule in RULES:
            for offence in await self._offences(rule):
                told = rule.sentence if dry else await self._apply(rule, offence)
                if told is not None:
                    done.append(Repaired(rule.name, str(offence), told))
        return done + await self._clear(dry=dry)

    async def left(self) -> list[str]:
        """What breaks an invariant and is mended by no rule: each with the rows, for people to look at."""
        known = {rule.name for rule in RULES} | MENDED_BY_WORKERS
        async with self._sessions() as session:
            broken = [one for one in await invariants.check(session) if one.offences and one.name not in known]
        return [f"{one.name}: {one.sentence} Broken by {dict(one.offences[0])}" for one in broken]

    async def _offences(self, rule: Rule) -> list[UUID]:
        async with self._sessions() as session:
            values = {"grace": self._grace} if ":grace" in rule.offences else {}
            return list(await session.scalars(text(f"{rule.offences} LIMIT {_MOST}"), values))

    async def _apply(self, rule: Rule, offence: UUID) -> str | None:
        try:
            async with transaction(self._sessions, self._bell) as session:
                return await rule.mend(session, offence)
        except IntegrityError as refused:
            said = str(refused.orig).splitlines()[0]
            return f"is left as it is, since the database refuses the repair: {said}"

    async def _clear(self, *, dry: bool) -> list[Repaired]:
        about = "below the state directory"
        if dry:
            found = await self._leftovers.ended()
            return [
                Repaired("worktrees", str(run_id), "The worktree of a run that has ended goes.") for run_id in found
            ]
        count = await self._leftovers.sweep()
        return [Repaired("worktrees", about, f"{count} of ended runs removed")] if count else []
