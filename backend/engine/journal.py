"""The journal of one node visit: a paid call is never paid twice, and nothing is sent that is not reserved.

Before a call its worst case is held and written down; after it the billed usage is booked with the reply, before
anybody uses it. A visit that runs again is answered from what is written down.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple, Protocol
from uuid import UUID, uuid5

import asyncpg

from backend import metrics
from backend.adapters.crashes import crash_point
from backend.adapters.db import calls
from backend.adapters.db.calls import Attempt, Outcome
from backend.adapters.db.checkpointer import LeaseLost
from backend.adapters.db.checkpointer.sending import fetch, persist
from backend.adapters.db.projection import mended
from backend.domain.budget import BudgetReached, Limit, breach
from backend.domain.config import RunConfig
from backend.domain.event import EVENT_TYPES
from backend.domain.ids import task_id
from backend.domain.model import (
    CallFailed,
    Choice,
    Exchange,
    Message,
    ModelReply,
    ModelRequest,
    Position,
    Quote,
)
from backend.domain.model_choice import choices
from backend.domain.ports import Visit
from backend.domain.retry import NextChoice, Retry, decide
from backend.domain.words import Token
from backend.engine.leases import Lease
from backend.engine.outcomes import (
    at_its_ceiling,
    ceiling,
    events_of,
    failed,
    given_up,
    longest,
    replayed_from,
    reply_of,
    request_hash,
    response_of,
    timed,
    unpriced_model,
    who_asked,
)
from backend.engine.speech import Say, Speech
from backend.errors import CompanyError
from backend.operations.ledger import CANCELLED, GONE

_log = logging.getLogger(__name__)

_JOURNAL = (
    "SELECT ordinal, max(attempt) AS attempt, jsonb_agg(jsonb_build_array(request_hash, response, provider, model)"
    " ORDER BY attempt DESC) FILTER (WHERE status = 'done' AND replayable) AS done"
    " FROM model_calls WHERE run_id = $1 AND node = $2 AND visit = $3 GROUP BY ordinal"
)
_RESERVED = (
    "SELECT 1 AS fenced, id AS call, true AS money_counts, nullif(reserved_seconds, 0)::double precision AS seconds"
    " FROM model_calls WHERE run_id = $1 AND lease_epoch = $2 AND node = $3 AND visit = $4 AND ordinal = $5"
    " AND attempt = $6 AND status = 'reserved'"
)


class _Reserved(NamedTuple):
    """A call that is written down: its row, whether any limit in USD counts it, how long it may take by its role's."""

    call: UUID
    money_counts: bool
    seconds: float | None


class Transport(Protocol):
    """What sends calls: `backend.adapters.llm.gateway.Gateway`."""

    def quote(self, choice: Choice, request: ModelRequest, config: RunConfig) -> Quote:
        """The worst case of a call."""
        ...

    async def admit(self, choice: Choice, config: RunConfig, quote: Quote) -> None:
        """Return once the provider may be asked; raises `CallFailed` while it does not answer, and nothing is sent."""
        ...

    async def send(
        self,
        choice: Choice,
        request: ModelRequest,
        position: Position,
        config: RunConfig,
        on_token: Callable[[Token], Awaitable[None]] | None = None,
    ) -> Exchange:
        """One attempt, streamed where somebody listens; raises `CallFailed`."""
        ...


class Holds:
    """How many calls of a slice hold something, so that one that found nothing left waits for another to let go.

    A call counts from before its hold is asked for: of two that ask at once, the one that is refused may hear first.
    """

    def __init__(self) -> None:
        self.let_go = 0
        self._open = 0
        self._changed = asyncio.Condition()

    def asked(self) -> None:
        """Count a call that may hold something from now on."""
        self._open += 1

    async def refused(self) -> None:
        """Count a call out that was given nothing to hold."""
        await self._ended(0)

    async def settled(self) -> None:
        """Count a call out that let go of what it held."""
        await self._ended(1)

    async def _ended(self, let_go: int) -> None:
        async with self._changed:
            self._open, self.let_go = self._open - 1, self.let_go + let_go
            self._changed.notify_all()

    async def others_let_go(self, since: int) -> bool:
        """Wait until `let_go` has passed `since`, or nobody is left who could; says which."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.let_go != since or not self._open)
        return self.let_go != since


@dataclass(eq=False)
class Books:
    """What all visits of one slice of a run share."""

    pool: Any
    lease: Lease
    config: RunConfig
    transport: Transport
    instance: str
    wake: Callable[[], None] = lambda: None
    say: Say | None = None
    degraded: bool = False
    more_time: Callable[[], Awaitable[bool]] | None = None
    """Gets the run more of the time that it shares with others; see `backend.engine.worktime`."""
    in_flight: set[asyncio.Task[Exchange]] = field(default_factory=set)
    holds: Holds = field(default_factory=Holds)

    async def cut_calls(self) -> None:
        """Cut every call that is on its way, and book its ceiling."""
        while waiting := list(self.in_flight):
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)


class Journal:
    """The model calls and notes of one visit."""

    def __init__(self, books: Books, visit: Visit) -> None:
        self._books = books
        self._visit = visit
        self._ordinal = 0
        self._written: dict[int, Any] | None = None
        self._said: Sequence[Message] = ()
        self._noted: dict[str, int] = {}

    async def ask(self, request: ModelRequest) -> ModelReply:
        """Answer from the journal or from a model; see `backend.domain.ports.Ask`."""
        self._ordinal += 1
        ordinal, hashed = self._ordinal, request_hash(request)
        earlier = (await self._journal()).get(ordinal)
        before, self._said = self._said, request.messages
        replayed = replayed_from(earlier, hashed)
        if replayed is not None:
            metrics.call_replayed(str(request.role), replayed.model)
            return replayed
        tried = earlier["attempt"] if earlier else 0
        written = self._written_down(request, before)
        return await self._try_all(request, ordinal, tried, hashed, written)

    async def _journal(self) -> Mapping[int, Any]:
        if self._written is None:
            run_id = self._books.lease.fence.run_id
            asked = (_JOURNAL, run_id, self._visit.node, self._visit.number)
            rows = await persist(lambda: self._books.pool.fetch(*asked))
            self._written = {row["ordinal"]: row for row in rows}
        return self._written

    def _written_down(self, request: ModelRequest, before: Sequence[Message]) -> dict[str, Any]:
        """What the row keeps of a request: the messages since the previous call of the visit, and the parameters."""
        shared = len(before) if tuple(request.messages[: len(before)]) == tuple(before) else 0
        kept = {"messages": list(request.messages[shared:]), "after": shared, "tool_choice": request.tool_choice}
        kept["tools"] = [tool.get("function", tool).get("name") for tool in request.tools]
        mendable: dict[str, Any] = mended(kept)
        return mendable

    async def _try_all(
        self, request: ModelRequest, ordinal: int, tried: int, hashed: str, written: Mapping[str, Any]
    ) -> ModelReply:
        books = self._books
        position = Position(self._visit.node, self._visit.number, ordinal, request.task_key or self._visit.task_key)
        degraded_to = books.config.budget.degrade_to if books.degraded else None
        listed = choices(books.config, request, degraded_to=degraded_to)
        place, tries = 0, 0
        while True:
            choice, tries = listed[place], tries + 1
            try:
                attempt = self._attempt(request, position, tried + 1, choice, hashed, written)
                await books.lease.patient(books.transport.admit(choice, books.config, attempt.quote))
                tried += 1
                exchange = await self._shielded(request, attempt)
            except CallFailed as failure:
                retries = books.config.models.providers[choice.provider].retries
                decision = decide(
                    failure,
                    attempt=tries,
                    retries=retries,
                    more_choices=place + 1 < len(listed),
                    jitter=random.random(),  # noqa: S311 - spreads waits, no secret
                )
                if isinstance(decision, Retry):
                    await books.lease.sleep(decision.after)
                elif isinstance(decision, NextChoice):
                    place, tries = place + 1, 0
                else:
                    raise given_up(failure, choice) from failure
            else:
                return reply_of(response_of(exchange), choice.provider, exchange.model)

    def _attempt(
        self,
        request: ModelRequest,
        position: Position,
        number: int,
        choice: Choice,
        hashed: str,
        written: Mapping[str, Any],
    ) -> Attempt:
        books = self._books
        return Attempt(
            position=position,
            number=number,
            role=str(request.role),
            choice=choice,
            quote=books.transport.quote(choice, request, books.config),
            request_hash=hashed,
            prompt_hash=request.prompt_hash,
            task_id=task_id(books.lease.fence.run_id, position.task_key) if position.task_key else None,
            request=written,
            seconds=longest(choice, books.config),
        )

    async def _shielded(self, request: ModelRequest, attempt: Attempt) -> Exchange:
        """Reserve, send and book; once sent, only a stop cuts it, whatever becomes of the node."""
        gone = asyncio.Event()
        task = asyncio.create_task(self._reserve_and_send(request, attempt, gone))
        self._books.in_flight.add(task)
        task.add_done_callback(self._books.in_flight.discard)
        # When the node is gone nobody asks for the result: what went wrong is booked all the same.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            return await asyncio.shield(task)
        finally:
            gone.set()

    async def _reserve_and_send(self, request: ModelRequest, attempt: Attempt, gone: asyncio.Event) -> Exchange:
        reserving = asyncio.ensure_future(self._reserve(attempt))
        try:
            reserved = await asyncio.shield(reserving)
        except asyncio.CancelledError:
            gone.set()
            reserved = await reserving
        if gone.is_set():
            # The node was cut while its call was being reserved, which nobody can take back half way.
            await self._book(attempt, reserved.call, Outcome("released", error=GONE), None)
            raise asyncio.CancelledError
        crash_point("reserve")
        return await self._exchange(request, attempt, reserved)

    async def _reserve(self, attempt: Attempt) -> _Reserved:
        """Hold the worst case, waiting for time that other calls may leave; raises `BudgetReached`."""
        holds = self._books.holds
        while True:
            let_go = holds.let_go
            row = await self._try_to_reserve(attempt)
            if row["call"] is not None:
                return _Reserved(row["call"], row["money_counts"], row["seconds"])
            first = json.loads(row["breaches"])[0]
            if first["unit"] != "seconds" or not await self._more_time(first, let_go):
                raise breach(first, unpriced=unpriced_model(attempt))

    async def _more_time(self, first: Mapping[str, Any], let_go: int) -> bool:
        """Whether there may be time now of which there was none: left by other calls of the role, or granted."""
        books = self._books
        if first["scope"] == "run_role" and Decimal(str(first["spent"])) < first["most"]:
            return await books.lease.patient(books.holds.others_let_go(let_go))
        return first["scope"] in {"project", "tenant_month"} and books.more_time is not None and await books.more_time()

    async def _try_to_reserve(self, attempt: Attempt) -> Any:
        holds, held = self._books.holds, False
        holds.asked()
        try:
            try:
                row = await fetch(self._books.pool, *calls.reserve(self._books.lease.fence, attempt))
            except asyncpg.UniqueViolationError:
                # The first sending was committed, its answer was lost, and the statement was sent again.
                row = await fetch(self._books.pool, _RESERVED, self._key(attempt))
            if not row["fenced"]:
                raise LeaseLost("The run has another owner.")
            held = row["call"] is not None
        finally:
            if not held:
                await holds.refused()
        return row

    def _key(self, attempt: Attempt) -> tuple[Any, ...]:
        position, fence = attempt.position, self._books.lease.fence
        return fence.run_id, fence.epoch, position.node, position.visit, position.ordinal, attempt.number

    async def _exchange(self, request: ModelRequest, attempt: Attempt, reserved: _Reserved) -> Exchange:
        books, call = self._books, reserved.call
        # A worker that was frozen since it reserved must not send: by now another one may have asked.
        books.lease.confirm()
        speech = self._speech(attempt)
        listen = None if speech is None else speech.hear
        began = time.monotonic()
        # What may take no longer than its provider allows is ended there.
        cut = reserved.seconds if reserved.seconds is not None and reserved.seconds < attempt.seconds else None
        try:
            async with asyncio.timeout(cut) as left:
                exchange = await books.transport.send(attempt.choice, request, attempt.position, books.config, listen)
        except CallFailed as failure:
            await self._book(attempt, call, timed(failed(failure, attempt, books.config), attempt, began), None)
            raise
        except TimeoutError as over:
            if not left.expired():
                raise
            reached = await self._cut_off(attempt, call, began)
            raise reached from over
        except asyncio.CancelledError:
            await self._book(attempt, call, timed(ceiling(attempt, CANCELLED), attempt, began), None)
            raise
        finally:
            if speech is not None:
                speech.end()
        if reserved.money_counts:
            exchange = at_its_ceiling(exchange, attempt.quote)
        crash_point("response")
        done = Outcome(
            "done",
            exchange.usage,
            exchange.cost_usd,
            response=mended(response_of(exchange)),
            latency_ms=round(exchange.latency_seconds * 1000),
        )
        await self._book(attempt, call, timed(done, attempt, began), exchange)
        crash_point("booked")
        return exchange

    async def _cut_off(self, attempt: Attempt, call: UUID, began: float) -> BudgetReached:
        """Book the ceiling of a call that took all the time that its role had left."""
        limit = Limit("run_role", attempt.role, "seconds")
        said = f"The role {attempt.role} had no more time left."
        await self._book(attempt, call, timed(ceiling(attempt, said), attempt, began), None)
        return BudgetReached(said, limit)

    def _speech(self, attempt: Attempt) -> Speech | None:
        books = self._books
        if books.say is None or not books.config.models.providers[attempt.choice.provider].stream:
            return None
        told = who_asked(attempt)
        return Speech(books.say, {"run_id": str(books.lease.fence.run_id), **told})

    async def _book(self, attempt: Attempt, call: UUID, outcome: Outcome, exchange: Exchange | None) -> None:
        """Book what became of a call. Cut meanwhile, it first gets to its end: a reply that came is paid for."""
        booking = asyncio.ensure_future(self._settle(attempt, call, outcome, exchange))
        try:
            await asyncio.shield(booking)
        except asyncio.CancelledError:
            await booking
            raise

    async def _settle(self, attempt: Attempt, call: UUID, outcome: Outcome, exchange: Exchange | None) -> None:
        books = self._books
        statement = calls.settle(
            books.lease.fence,
            call,
            outcome,
            events_of(attempt, outcome),
            shares=books.config.budget.warn_at,
            instance=books.instance,
        )
        try:
            row = await fetch(books.pool, *statement)
        finally:
            await books.holds.settled()
        if not row["fenced"]:
            raise LeaseLost("The run has another owner.")
        usage = outcome.usage
        metrics.call_settled(
            attempt.role,
            attempt.choice.model,
            outcome=outcome.status,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cached_tokens=usage.cached_tokens,
            cost_usd=outcome.cost_usd,
            seconds=exchange.latency_seconds if exchange else None,
        )
        books.wake()

    async def note(self, event_type: str, payload: Mapping[str, Any]) -> None:
        """Record an event now; see `backend.domain.ports.Seat`."""
        assert event_type in EVENT_TYPES, event_type
        books, visit = self._books, self._visit
        ordinal = self._noted[event_type] = self._noted.get(event_type, 0) + 1
        identity = uuid5(books.lease.fence.run_id, f"note/{visit.node}/{visit.number}/{event_type}/{ordinal}")
        told = mended({"node": visit.node, "visit": visit.number, "task": visit.task_key} | dict(payload))
        await _record(books, identity, event_type, told)


async def warn_of_time(books: Books, share: float, limit: int) -> None:
    """Record once a share and limit that a share of the run's working time is used up; never raises."""
    identity = uuid5(books.lease.fence.run_id, f"warned/seconds/{share}/{limit}")
    told = {"scope": "run", "name": "all", "unit": "seconds", "share": share, "spent": share * limit, "limit": limit}
    try:
        await _record(books, identity, "budget.warned", told)
    except (CompanyError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        _log.warning("A warning of the run's time was not recorded: %s", error)


async def _record(books: Books, identity: UUID, event_type: str, told: Mapping[str, Any]) -> None:
    """Record an event now, once by its identity."""
    try:
        row = await fetch(books.pool, *calls.note(books.lease.fence, identity, event_type, told, books.instance))
        if not row["fenced"]:
            raise LeaseLost("The run has another owner.")
    except asyncpg.UniqueViolationError:
        _log.debug("An earlier sending of the event %s was on its way still when it was sent again.", event_type)
    books.wake()
