"""One worker's turn at one run: build, stream, and one of the ways it ends; the only place where a graph is driven.

Whatever happens inside ends here: `Held` and drains hold the run, `LimitReached` goes to the budget gate, conditions
end it with a report, a lost lease ends nothing at all, since the run is somebody else's by then.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import traceback
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID

from langgraph.errors import GraphDrained, GraphRecursionError
from langgraph.types import Command, Interrupt

from backend import metrics
from backend.adapters.crashes import crash_point
from backend.adapters.db.checkpointer import GroupCommit, LeaseLost, RunSaver
from backend.adapters.db.checkpointer.retention import thin
from backend.adapters.db.engine import Sessions
from backend.adapters.db.projection import Rows
from backend.domain import gates
from backend.domain.budget import BudgetReached, Limit
from backend.domain.graph import RECURSION_LIMIT
from backend.domain.ports import Bell, Held, StepFailed, Visit
from backend.domain.question import interrupt_key
from backend.domain.run import RunStatus
from backend.engine import claims
from backend.engine.claiming import Claimed
from backend.engine.context import Seats, Workbenches, context_of
from backend.engine.driving import drive
from backend.engine.journal import Books, Transport, warn_of_time
from backend.engine.leases import BEFORE_THE_NEXT_CALL, Lease
from backend.engine.leftovers import Leftovers
from backend.engine.loader import Graphs
from backend.engine.prompts import Library
from backend.engine.worktime import WorkTime
from backend.errors import CompanyError, LimitReached
from backend.settings import EngineSettings

_log = logging.getLogger(__name__)
STOP_SECONDS = 2.0
"""How long calls and commands that a stop cuts may take to let go."""
CUTTING = frozenset({"stop", "seconds"})
"""Reasons to hold for which calls in flight are cut, too, and booked at their ceiling."""
LAST_CALLS_SECONDS = 5.0
"""How long calls in flight are waited for when the worker must leave."""
DATABASE_AWAY = "database_unavailable"


@dataclass(frozen=True, slots=True)
class _End:
    status: RunStatus
    code: str
    message: str


@dataclass(eq=False, kw_only=True)
class Shared:
    """What all runs of a process share."""

    sessions: Sessions
    pool: Any
    bell: Bell
    transport: Transport
    graphs: Graphs
    library: Library
    workbenches: Workbenches
    settings: EngineSettings
    owner: str
    leftovers: Leftovers | None = None
    """Clears away the worktrees of a run that ends."""
    out_of_memory: Callable[[], None] = lambda: None
    """Asks this process to leave, which cannot be trusted any more."""
    group: GroupCommit = field(init=False)

    def __post_init__(self) -> None:
        """Let all runs of this process commit together."""
        self.group = GroupCommit(self.pool)

    def got_on(self, run_id: UUID) -> None:
        """A run finished a node, or left."""


class Slice:
    """One worker's turn at one run."""

    def __init__(self, shared: Shared, claimed: Claimed, lease: Lease) -> None:
        self._shared, self._claimed, self._lease = shared, claimed, lease
        self._began = time.monotonic()
        # A worker may have died between asking and waiting; a fork may begin with a question that is open.
        self._asked = claimed.asks
        self._begun = claimed.head is not None
        self._ended: RunStatus | None = None
        self._interrupts: dict[str, str] = {}
        self._visits: dict[str, Visit] = {}
        # What an earlier slice wrote nobody knows here.
        self._to_thin = claimed.head is not None
        self._superstep_began = self._superstep_until = time.monotonic()
        run_id = claimed.facts.run_id
        self._wake = partial(shared.bell.wake, run_id)
        self._time = WorkTime(
            shared.pool,
            lease,
            piece=min(shared.settings.lease_seconds, shared.settings.slice_seconds),
            shares=claimed.facts.config.budget.warn_at,
            instance=shared.owner,
            wake=self._wake,
        )
        self._books = Books(
            pool=shared.pool,
            lease=lease,
            config=claimed.facts.config,
            transport=shared.transport,
            instance=shared.owner,
            wake=self._wake,
            say=partial(shared.bell.say, run_id),
            degraded=claimed.degraded,
            more_time=self._time.renew,
        )
        self._run_id = run_id
        self._background: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Drive, and leave the run in a state that tells the truth."""
        timers = self._timers()
        try:
            while await self._leave(await self._drive_once()):
                self._asked, self._interrupts = False, {}
                self._lease.go_on()
        finally:
            self._time.stop()
            for timer in timers:
                timer.cancel()

    def _timers(self) -> list[asyncio.TimerHandle]:
        loop = asyncio.get_running_loop()
        timers = [loop.call_later(self._shared.settings.slice_seconds, self._lease.hold, "slice")]
        left, limit = self._claimed.seconds_left, self._claimed.limit_seconds
        if left is not None and limit is not None:
            timers.append(loop.call_later(max(0.0, left), self._lease.hold, "seconds"))
            for share in self._claimed.facts.config.budget.warn_at:
                timers.append(loop.call_later(max(0.0, left - limit * (1 - share)), self._warn_of_time, share, limit))
        return timers

    def _warn_of_time(self, share: float, limit: int) -> None:
        """Tell once that a share of the run's time is used up, whichever slice comes to it."""
        self._later(warn_of_time(self._books, share, limit))

    # --- driving ---------------------------------------------------------------------------------------------------

    async def _drive_once(self) -> BaseException | None:
        """Drive the graph until it stops; returns why, None when it came to its end or to a node edge."""
        lease = self._lease
        if lease.reason == "pause" or lease.reason in BEFORE_THE_NEXT_CALL:
            return Held(str(lease.reason))
        if self._asked:
            return None
        self._mark_superstep()
        driving = asyncio.create_task(self._stream())
        try:
            return await self._watch(driving)
        finally:
            driving.cancel()
            await self._wait_for({driving}, patience=STOP_SECONDS)
            if driving.done() and not driving.cancelled():
                driving.exception()
            # After its time a run waits for nothing: a call in flight is booked at its ceiling.
            await self._wait_for(self._books.in_flight, patience=0.0)
            await self._books.cut_calls()

    async def _wait_for(self, tasks: Collection[asyncio.Task[Any]], *, patience: float) -> None:
        """Wait for what was asked to end; if the run must let go at once, now or while waiting, only for `patience`."""
        lease, began = self._lease, time.monotonic()
        while waiting := [task for task in tasks if not task.done()]:
            lease.changed.clear()
            if lease.lost or lease.reason in CUTTING:
                await asyncio.wait(waiting, timeout=patience)
                return
            left = began + LAST_CALLS_SECONDS - time.monotonic() if lease.reason == "shutdown" else None
            if left is not None and left <= 0:
                return
            waiter = asyncio.ensure_future(lease.changed.wait())
            await asyncio.wait({*waiting, waiter}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            waiter.cancel()

    async def _watch(self, driving: asyncio.Task[None]) -> BaseException | None:
        """Wait for the graph, but cut it for what does not wait for the node, or a shutdown that waited long enough."""
        lease, patience = self._lease, None
        while not driving.done():
            lease.changed.clear()
            if lease.lost:
                return LeaseLost("The lease of the run ran out.")
            if lease.reason in CUTTING or lease.reason == "pause_now":
                return Held(str(lease.reason))
            if lease.reason == "shutdown" and patience is None:
                patience = time.monotonic() + self._shared.settings.shutdown_seconds
            now = time.monotonic()
            if patience is not None and now >= patience:
                return Held("shutdown")
            if now >= self._superstep_until:
                return TimeoutError("A node took longer than it may.")
            waiter = asyncio.ensure_future(lease.changed.wait())
            left = min(self._superstep_until, patience or self._superstep_until) - now
            await asyncio.wait({driving, waiter}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            waiter.cancel()
        return None if driving.cancelled() else driving.exception()

    async def _stream(self) -> None:
        claimed, shared = self._claimed, self._shared
        facts = claimed.facts
        if claimed.timed and not await self._time.renew():
            raise Held("seconds")
        spec = shared.graphs.find(claimed.graph, claimed.graph_version)
        prompts = await shared.library.open(claimed.pins)
        bench = await shared.workbenches(facts)
        self._visits = {}
        saver = RunSaver(
            shared.pool,
            self._lease.fence,
            visits=self._visits,
            holding=lambda: self._lease.control.drain_requested,
            committed=self._committed,
            interrupted=self._interrupted,
            instance=shared.owner,
            begun=self._begun,
            group=shared.group,
        )
        config = {
            "configurable": {"thread_id": str(self._run_id)},
            "recursion_limit": RECURSION_LIMIT,
        }
        begin = await self._input(saver, config, spec.initial_state)
        self._mark_superstep()
        seats = Seats(self._books, bench, saver.settled, self._visits)
        context = context_of(facts, seats, bench, saver.settled, prompts, claimed.answers, claimed.waived)
        compiled = shared.graphs.compiled(spec.name, spec.version)
        at_once = max(16, facts.config.parallelism)
        control = self._lease.control
        # Of a run whose worker died, nodes begin in turn: one that takes its worker down is to be found at its name.
        async with saver.ahead() if self._claimed.claims == 1 else nullcontext():
            await drive(compiled, saver, begin, config, context=context, control=control, at_once=at_once)

    def _interrupted(self, interrupts: Sequence[Interrupt]) -> None:
        self._interrupts |= {interrupt.id: _as_text(interrupt.value) for interrupt in interrupts}

    async def _input(
        self, saver: RunSaver, config: Any, initial: Callable[[Any], dict[str, Any]]
    ) -> dict[str, Any] | Command[Any] | None:
        """What the graph is started with: its first state, None to go on, or the answers to its interrupts."""
        saved = await saver.aget_tuple(config)
        if saved is None:
            return initial(self._claimed.facts)
        asked = [write for _, channel, write in saved.pending_writes or () if channel == "__interrupt__"]
        answers = {
            interrupt.id: self._claimed.answers[interrupt_key(interrupt.id)].text
            for interrupts in asked
            for interrupt in interrupts
            if interrupt_key(interrupt.id) in self._claimed.answers
        }
        return Command(resume=answers) if answers else None

    def _committed(self, rows: Rows) -> None:
        """After each commit: count, remember what it says of the run, and tell the followers."""
        self._begun = True
        now = time.monotonic()
        for event_type, payload in rows.events:
            if event_type == "node.finished":
                metrics.node_finished(self._claimed.graph, payload["node"], now - self._superstep_began)
            elif event_type == "gate.decided":
                metrics.gate_decided(str(payload.get("gate")), str(payload.get("decision")))
        if rows.ends_superstep:
            self._mark_superstep()
        else:
            self._to_thin = True
        if self._claimed.claims > self._shared.settings.trusted_claims:
            self._shared.got_on(self._run_id)
        if rows.questions:
            self._asked = True
            self._lease.hold("question")
        if rows.end is not None:
            self._ended = RunStatus(rows.end["status"])
            # The graph may go on from here when the run is retried; now it may not.
            self._lease.hold("ended")
        self._wake()

    def _mark_superstep(self) -> None:
        self._superstep_began = time.monotonic()
        # Not LangGraph's own step timeout, with which it makes a task, a future and a timer for each node.
        self._superstep_until = self._superstep_began + self._claimed.facts.config.limits.node_seconds
        # A node that blocks the loop loses its lease some seconds later.
        self._lease.node_until = self._superstep_until + self._shared.settings.lease_seconds

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # --- leaving ---------------------------------------------------------------------------------------------------

    async def _leave(self, why: BaseException | None) -> bool:
        """Leave the run as `why` asks for; True when it is to be driven on at once."""
        if isinstance(why, LeaseLost) or self._lease.lost:
            raise LeaseLost("The run has another owner.")
        if self._ended is not None:
            crash_point("final")
            await self._finish(self._ended)
            return False
        if isinstance(why, LimitReached):
            limit = why.limit if isinstance(why, BudgetReached) else Limit("run", "all", "tokens")
            return await self._pass_budget_gate(str(why), limit)
        if why is None or isinstance(why, Held | GraphDrained):
            return await self._hold()
        return await self._fail(why)

    async def _hold(self) -> bool:
        crash_point("hold")
        reason = self._lease.reason
        if reason == "stop":
            await self._end(_End(RunStatus.STOPPED_USER, "stopped_by_person", "Somebody stopped the run."))
        elif reason == "seconds" and self._time.reached is not None:
            reached = await self._time.used_up()
            if reached is not None:
                return await self._pass_budget_gate(str(reached), reached.limit)
            await claims.release(*self._who(), **self._ttl())
        elif reason == "seconds":
            return await self._pass_budget_gate(
                f"The run has worked for its {self._claimed.limit_seconds} seconds.", Limit("run", "all", "seconds")
            )
        elif self._asked or self._interrupts:
            return await self._wait()
        elif reason in {"pause", "pause_now"}:
            await claims.pause(*self._who(), reason="paused_by_person", **self._ttl())
        elif reason in {"slice", "shutdown"}:
            await claims.release(*self._who(), **self._ttl())
        else:
            return await self._without_end()
        return False

    async def _wait(self) -> bool:
        waits = await claims.wait(*self._who(), interrupts=self._interrupts, **self._ttl())
        if waits:
            return False
        # Everything was answered while the node's commit was on its way: take the answers up by a new claim.
        await claims.release(*self._who(), **self._ttl())
        return False

    async def _without_end(self) -> bool:
        message = f"The graph {self._claimed.graph} came to its end without saying how the run ended."
        await self._end(_End(RunStatus.FAILED, "no_verdict", message))
        return False

    async def _pass_budget_gate(self, message: str, limit: Limit) -> bool:
        budget = self._claimed.facts.config.budget
        # A cheaper model wins no time.
        verdict = gates.budget(budget, message, degraded=self._books.degraded or limit.unit == "seconds")
        told = {"scope": limit.scope, "name": limit.name, "unit": limit.unit, "decision": str(verdict.decision)}
        told |= {"reason": message, "on_exceed": str(budget.on_exceed)}
        exceeded = ("budget.exceeded", told)
        if verdict.decision is gates.Decision.DEGRADE:
            await claims.tell(*self._who(), [exceeded, ("budget.degraded", {"model": budget.degrade_to})])
            self._books.degraded = True
            return True
        if verdict.decision is gates.Decision.PAUSE:
            question = _budget_question(message, limit)
            await claims.pause(*self._who(), reason="budget", question=question, told=[exceeded], **self._ttl())
        else:
            await self._end(_End(RunStatus.STOPPED_BUDGET, "budget", message), told=[exceeded])
        return False

    async def _fail(self, why: BaseException) -> bool:
        if isinstance(why, CompanyError) and why.code == DATABASE_AWAY:
            _log.warning("The run is left to its lease: %s", why)
            return False
        if isinstance(why, MemoryError):
            # Which run's fault it is cannot be seen from here. It is as if the worker had died, which uses up a claim:
            # who takes one worker after another down is given up, and its neighbours go on.
            traceback.clear_frames(why.__traceback__)
            _log.error("There is no memory left. The run is left to its lease, and the worker leaves.", exc_info=why)
            self._shared.out_of_memory()
            return False
        at_fault = isinstance(why, StepFailed) and why.replies_at_fault
        end = _end_of(why, self._claimed.facts.config.limits.node_seconds)
        await self._end(end, distrusted=self._failed_visit(why) if at_fault else None)
        return False

    def _failed_visit(self, why: BaseException) -> tuple[str, int]:
        """The visit that an exception came from, as LangGraph notes its task."""
        noted = " ".join(getattr(why, "__notes__", ()))
        for task, visit in self._visits.items():
            if task in noted:
                return visit.node, visit.number
        return "", 0

    async def _end(self, end: _End, *, told: claims.Told = (), distrusted: tuple[str, int] | None = None) -> None:
        await claims.end(
            *self._who(),
            end.status,
            code=end.code,
            message=end.message,
            told=told,
            distrusted=distrusted,
            **self._ttl(),
        )
        await self._finish(end.status)

    async def _finish(self, status: RunStatus) -> None:
        metrics.run_ended(status)
        _log.info("The run has ended as %s.", status)
        # A graph that came to its end in one go has written nothing but checkpoints.
        to_thin = self._to_thin or self._ended is None
        if to_thin and self._claimed.facts.config.retention.checkpoints == "thin":
            await thin(self._shared.pool, self._run_id)
        self._wake()
        if self._shared.leftovers is not None:
            await self._shared.leftovers.remove(self._run_id)

    def _who(self) -> tuple[Sessions, Bell, UUID, int]:
        return self._shared.sessions, self._shared.bell, self._run_id, self._lease.fence.epoch

    def _ttl(self) -> Mapping[str, Any]:
        return {"lease_seconds": self._shared.settings.lease_seconds}


def _end_of(why: BaseException, node_seconds: int) -> _End:
    if isinstance(why, StepFailed):
        return _End(RunStatus.FAILED, why.code, why.message)
    if isinstance(why, CompanyError):
        return _End(RunStatus.FAILED, why.code, why.message)
    if isinstance(why, TimeoutError):
        message = f"A node took longer than the {node_seconds} seconds that limits.node_seconds allows; retry the run."
        return _End(RunStatus.FAILED, "node_timeout", message)
    if isinstance(why, GraphRecursionError):
        return _End(RunStatus.FAILED, "too_many_steps", f"The graph took more than {RECURSION_LIMIT} steps.")
    _log.error("A node failed.", exc_info=why)
    said = f"{type(why).__name__}: {why}".replace("\x00", "\ufffd")[:2000]
    return _End(RunStatus.FAILED, "node_error", f"A node failed with {said}. Look at the worker's log, then retry.")


def _budget_question(message: str, limit: Limit) -> dict[str, Any]:
    example = {"usd": "1.50 usd", "tokens": "20000 tokens", "seconds": "600 seconds"}[limit.unit]
    text = f"{message} Answer by how much the limit of {limit.whose} is to grow (`{example}`), or `stop`."
    return {"key": limit.key(time.time_ns()), "text": text}


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
