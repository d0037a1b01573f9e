"""Leases: who may drive a run, for how long, and what was asked of it meanwhile.

All times are the database's clock; a lease's owner also keeps a local monotonic deadline, since a fence cannot un-spend
money. The heartbeat runs on a thread with its own event loop and connection, so that a blocking call cannot stop it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import asyncpg
from langgraph.runtime import RunControl

from backend import metrics
from backend.adapters.db.checkpointer import LeaseLost
from backend.adapters.db.commit import Fence
from backend.adapters.db.engine import DRIVER
from backend.adapters.db.pool import plain_url
from backend.domain.ports import Held
from backend.domain.run import Request

_log = logging.getLogger(__name__)

T = TypeVar("T")

EXTEND = (
    "WITH mine AS (SELECT r.id FROM project_runs r JOIN unnest($1::uuid[], $2::bigint[]) AS u(id, epoch)"
    " ON r.id = u.id AND r.lease_epoch = u.epoch WHERE r.status = 'RUNNING' AND r.lease_owner IS NOT NULL"
    " ORDER BY r.id FOR NO KEY UPDATE OF r SKIP LOCKED)"
    " UPDATE project_runs r SET lease_expires_at = clock_timestamp() + make_interval(secs => $3),"
    " spent_seconds = r.spent_seconds + greatest(0, extract(epoch FROM clock_timestamp() - r.lease_expires_at"
    " + make_interval(secs => $3)))::numeric(14, 6) FROM mine WHERE r.id = mine.id RETURNING r.id"
)
ASK_SECONDS = 0.5
"""How often the process looks for what was asked of its runs: a stop takes effect within two seconds."""
ASKED = (
    "SELECT id, lease_epoch, CASE WHEN requested = 'pause' AND pause_at_once THEN 'pause_now' ELSE requested END"
    " AS requested FROM project_runs WHERE id = ANY ($1::uuid[])"
)
RANKS = {"slice": 0, "question": 0, "ended": 0, "pause": 1, "shutdown": 2, "pause_now": 3, "seconds": 4, "stop": 5}
"""Reasons to hold; one that is more urgent takes the place of another, of equals the first stays."""
BEFORE_THE_NEXT_CALL = frozenset({"shutdown", "pause_now", "seconds", "stop"})
"""Reasons for which a node asks no model any more; for the others it is finished first."""


@dataclass(eq=False)
class Lease:
    """The right to drive one run, in this process; `reason` says why it is to hold, None while it may go on."""

    fence: Fence
    owner: str
    loop: asyncio.AbstractEventLoop
    until: float
    """Local monotonic time after which nothing may be spent."""
    control: RunControl = field(default_factory=RunControl)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    reason: str | None = None
    lost: bool = False
    node_until: float = float("inf")
    """Local monotonic time at which the node that runs loses the lease by design."""

    @property
    def key(self) -> tuple[UUID, int]:
        """What tells leases apart."""
        return self.fence.run_id, self.fence.epoch

    def hold(self, reason: str) -> None:
        """Let the run hold for one of `RANKS`, at the safe point that belongs to it."""
        if self.reason is None or RANKS[reason] > RANKS[self.reason]:
            self.reason = reason
        self.control.request_drain(reason)
        self.changed.set()

    def go_on(self) -> None:
        """Drive on in this lease: what the graph asked for is dealt with, what people asked for still holds."""
        self.control = RunControl()
        if self.reason == "question":
            self.reason = None
        if self.reason is not None:
            self.control.request_drain(self.reason)

    def lose(self) -> None:
        """The run has another owner, or its time is over."""
        if not self.lost:
            self.lost = True
            metrics.lease_lost()
        self.control.request_drain("lost")
        self.changed.set()

    def check(self) -> None:
        """Raise before anything is spent that must not be; `Held` for what does not wait for the node's end."""
        self.confirm()
        if self.reason in BEFORE_THE_NEXT_CALL:
            raise Held(self.reason)

    def confirm(self) -> None:
        """Raise `LeaseLost` when the time of the lease is over, whatever is asked of the run."""
        if self.lost or time.monotonic() >= self.until:
            self.lose()
            raise LeaseLost("The lease of the run ran out.")

    async def sleep(self, seconds: float) -> None:
        """Wait, but not longer than until something is asked of the run; raises as `check` does."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.changed.clear()
            self.check()
            try:
                await asyncio.wait_for(self.changed.wait(), left)
            except TimeoutError:
                return

    async def patient(self, waiting: Coroutine[Any, Any, T]) -> T:
        """Wait for something that costs nothing, until something is asked of the run; raises as `check` does."""
        task = asyncio.ensure_future(waiting)
        changed: asyncio.Task[Any] | None = None
        try:
            while not task.done():
                self.changed.clear()
                self.check()
                changed = asyncio.ensure_future(self.changed.wait())
                await asyncio.wait({task, changed}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
            self.check()
            return task.result()
        finally:
            task.cancel()
            if changed is not None:
                changed.cancel()


class Heartbeat:
    """Extends all leases of this process in one statement, and brings back what was asked of their runs."""

    def __init__(self, url: str, *, every: float, lease_seconds: float) -> None:
        self._url, self._every, self._ttl = plain_url(url), every, lease_seconds
        self._leases: dict[tuple[UUID, int], Lease] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def stop(self) -> None:
        """Stop beating; leases that are still held run out."""
        self._stop.set()
        self._thread.join(timeout=5)

    def add(self, lease: Lease) -> None:
        """Keep a lease alive from now on."""
        with self._lock:
            self._leases[lease.key] = lease

    def remove(self, lease: Lease) -> None:
        """Let a lease go."""
        with self._lock:
            self._leases.pop(lease.key, None)

    def _run(self) -> None:
        asyncio.run(self._beat_until_stopped())

    async def _beat_until_stopped(self) -> None:
        connection: Any = None
        extended = float("-inf")
        pause = min(self._every, ASK_SECONDS)
        while not self._stop.is_set():
            began = time.monotonic()
            # What is asked is read often, which writes nothing; leases are extended when it is time.
            due = began - extended >= self._every
            try:
                if connection is None or connection.is_closed():
                    connection = await asyncpg.connect(self._url, timeout=5, command_timeout=5)
                await self.beat(connection, extend=due)
                extended = began if due else extended
            except (OSError, *DRIVER) as error:
                _log.warning("A heartbeat did not reach the database: %s", error)
                if connection is not None:
                    connection.terminate()
                connection = None
            await asyncio.to_thread(self._stop.wait, max(0.05, pause - (time.monotonic() - began)))
        if connection is not None:
            connection.terminate()

    async def beat(self, connection: Any, *, extend: bool = True) -> None:
        """Extend the leases, unless it is too early, and look once for what was asked."""
        with self._lock:
            now = time.monotonic()
            leases = {lease.fence.run_id: lease for lease in self._leases.values() if now < lease.node_until}
            overdue = [lease for lease in self._leases.values() if now >= lease.node_until]
        for lease in overdue:
            _tell(lease, lease.lose)
        if not leases:
            return
        began = time.monotonic()
        epochs = [lease.fence.epoch for lease in leases.values()]
        # A run whose row is locked is being written at this moment, mostly by us; its next beat comes soon enough.
        for row in await connection.fetch(EXTEND, list(leases), epochs, self._ttl) if extend else ():
            leases[row["id"]].until = began + self._ttl
        for row in await connection.fetch(ASKED, list(leases)):
            lease = leases[row["id"]]
            if row["lease_epoch"] != lease.fence.epoch:
                _tell(lease, lease.lose)
            elif row["requested"] != Request.NONE:
                _tell(lease, partial(lease.hold, row["requested"]))


def _tell(lease: Lease, what: Callable[[], None]) -> None:
    try:
        lease.loop.call_soon_threadsafe(what)
    except RuntimeError:
        _log.debug("The worker's loop is closed; its leases run out.")
