"""How long a run may go on working by the limits in seconds that it shares: pieces that are renewed before their end.

A piece is as long as a lease, so that a worker that dies holds no more. The last third of a piece is the time in which
it is renewed, again and again where less than a piece is left; at the very end of it the run is told to hold. Whether
the limit is used up by then is asked once more: other runs may have given time back, or the answer came late.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from backend.adapters.db import grants
from backend.adapters.db.checkpointer import LeaseLost
from backend.adapters.db.checkpointer.sending import fetch
from backend.domain.budget import BudgetReached, Limit, used_up
from backend.engine.leases import Lease
from backend.errors import Unavailable

_log = logging.getLogger(__name__)
_MARGIN = 1 / 3
"""The share of a piece that is left when it is renewed."""
_CRUMB_SECONDS = 1.0
"""What counts as nothing: a model that is asked in so little time is cut, and paid for nothing."""


class WorkTime:
    """The grants of one lease."""

    def __init__(
        self, pool: Any, lease: Lease, *, piece: float, shares: Sequence[float], instance: str, wake: Callable[[], None]
    ) -> None:
        """`piece`: seconds of a grant at most; `shares`: which shares of a limit are told of."""
        self.reached: BudgetReached | None = None
        """The limit at which the run was told to hold."""
        self._pool, self._lease, self._piece, self._wake = pool, lease, piece, wake
        self._shares, self._instance = shares, instance
        self._margin = piece * _MARGIN
        self._crumb = min(_CRUMB_SECONDS, self._margin)
        self._timers: list[asyncio.TimerHandle] = []
        self._renewing: asyncio.Task[bool] | None = None
        self._one = asyncio.Lock()

    async def renew(self) -> bool:
        """Get the time to go on from now; False, and the run is to hold, where none is left.

        Raises `LeaseLost`, and `Unavailable` while the database is away: what was granted before counts until its end.
        """
        async with self._one:
            began = time.monotonic()
            row = await self._grant()
            self._clear()
            if row["seconds"] is None:
                return True
            if row["seconds"] <= 0:
                self._hold(_reached(row))
                return False
            left = row["seconds"] - (time.monotonic() - began)
            loop = asyncio.get_running_loop()
            self._timers.append(loop.call_later(max(0.0, left), self._hold, _reached(row)))
            if left > self._crumb:
                self._timers.append(loop.call_later(left - min(self._margin, left / 2), self._renew_later))
            return True

    async def used_up(self) -> BudgetReached | None:
        """The limit that keeps a run which held at the end of its time from going on; None where there is time now.

        Raises `LeaseLost` and `Unavailable`.
        """
        async with self._one:
            row = await self._grant()
        return None if row["seconds"] is None or row["seconds"] >= self._crumb else _reached(row)

    async def _grant(self) -> Any:
        asked = grants.renew(self._lease.fence, self._piece, self._shares, self._instance)
        row = await fetch(self._pool, *asked)
        if not row["fenced"]:
            raise LeaseLost("The run has another owner.")
        if row["told"]:
            self._wake()
        return row

    def stop(self) -> None:
        """Renew no more: the end of the lease books what was worked."""
        self._clear()
        if self._renewing is not None:
            self._renewing.cancel()

    def _clear(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def _hold(self, reached: BudgetReached) -> None:
        if self._lease.reason != "seconds":
            self.reached = reached
        self._lease.hold("seconds")

    def _renew_later(self) -> None:
        self._renewing = asyncio.ensure_future(self._renew_or_leave())

    async def _renew_or_leave(self) -> bool:
        try:
            return await self.renew()
        except LeaseLost:
            self._lease.lose()
        except Unavailable as away:
            _log.warning("The run gets no more time while the database is away: %s", away)
        return False


def _reached(row: Any) -> BudgetReached:
    limit = Limit(row["scope"], row["name"], "seconds")
    return BudgetReached(used_up(limit, row["most"]), limit)
