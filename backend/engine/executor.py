"""How a run is taken up by a worker: claimed once for all bells that ring, driven by a `Slice`, let go."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from functools import partial
from uuid import UUID

from backend import logs, metrics
from backend.adapters.crashes import crash_point
from backend.adapters.db.checkpointer import LeaseLost
from backend.adapters.db.commit import Fence
from backend.domain.run import Request
from backend.engine.claiming import Claimed, claim
from backend.engine.leases import Heartbeat, Lease
from backend.engine.slice import Shared, Slice
from backend.engine.suspects import Suspects
from backend.engine.taking import Taker

_log = logging.getLogger(__name__)


@dataclass(eq=False, kw_only=True)
class Executor(Shared):
    """Takes runs up, each once, and lets them go."""

    heartbeat: Heartbeat
    leases: dict[UUID, Lease] = field(default_factory=dict)
    _claiming: dict[UUID, bool] = field(default_factory=dict)
    """Runs that are being claimed at this moment, and whether the bell rang again meanwhile."""
    _leaving: str | None = None
    """Why no run is to be driven any more; a run that is being claimed when all others hold must hold as well."""
    _suspects: Suspects = field(default_factory=Suspects)
    _taker: Taker = field(init=False)

    def __post_init__(self) -> None:
        """Let the runs of this process be taken together, too."""
        super().__post_init__()
        settings, pins = self.settings, self.library.pins
        most = min(settings.max_claims, settings.trusted_claims)
        self._taker = Taker(self.pool, owner=self.owner, lease_seconds=settings.lease_seconds, most=most, pins=pins)

    async def execute(self, run_id: UUID) -> None:
        """Take a run up and drive it to its end, to a question, a request or the end of the slice.

        Returns quietly when there is nothing to do: another worker has it, it holds, it has ended.
        """
        if run_id in self._claiming:
            self._claiming[run_id] = True
            return
        began, claimed = await self._claim(run_id)
        if claimed is None:
            return
        crash_point("claim")
        metrics.run_claimed()
        fence = Fence(run_id, claimed.epoch, self.settings.lease_seconds)
        lease = Lease(fence, self.owner, asyncio.get_running_loop(), began + self.settings.lease_seconds)
        for reason in (claimed.requested, self._leaving):
            if reason is not None and reason is not Request.NONE:
                lease.hold(reason)
        self.leases[run_id] = lease
        self.heartbeat.add(lease)
        with logs.bind(run_id=run_id, correlation_id=claimed.facts.correlation_id or None):
            _log.info("The run is taken up.", extra={"epoch": claimed.epoch, "owner": self.owner})
            try:
                await Slice(self, claimed, lease).run()
            except LeaseLost:
                _log.info("Another worker has the run now.")
            finally:
                self.heartbeat.remove(lease)
                # A lease that ran out may have been followed by another one of this process.
                if self.leases.get(run_id) is lease:
                    del self.leases[run_id]
                    self.got_on(run_id)

    async def _claim(self, run_id: UUID) -> tuple[float, Claimed | None]:
        """Claim a run once for all bells that ring at the same time: a queue for its row would eat up its lease."""
        self._claiming[run_id] = True
        try:
            while self._claiming[run_id]:
                self._claiming[run_id] = False
                began = time.monotonic()
                claimed = await self._claim_once(run_id, taker=self._taker)
                if claimed is None:
                    began = time.monotonic()
                    claimed = await self._suspects.claim(run_id, partial(self._claim_once, run_id))
                if claimed is not None:
                    break
            return began, claimed
        finally:
            del self._claiming[run_id]

    async def _claim_once(self, run_id: UUID, *, taker: Taker | None = None) -> Claimed | None:
        return await claim(
            self.sessions,
            self.pool,
            self.bell,
            run_id,
            owner=self.owner,
            lease_seconds=self.settings.lease_seconds,
            max_claims=self.settings.max_claims,
            library=self.library,
            taker=taker,
        )

    def got_on(self, run_id: UUID) -> None:
        """A run finished a node, or left: if it was under suspicion, the next one may come."""
        for waiting in self._suspects.clear(run_id):
            self.bell.ring(waiting)

    def hold_all(self, reason: str) -> None:
        """Ask every run of this process to hold at its next safe point, those as well that are claimed from now on."""
        self._leaving = reason
        for lease in self.leases.values():
            lease.hold(reason)
