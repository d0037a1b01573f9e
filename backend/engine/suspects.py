"""Runs that are close to being given up are driven one at a time: when a worker dies, it is clear which of them did it.

Every run of a worker that dies has used up one of its claims, whoever took the worker down. In its last claims a run is
under suspicion, and no worker holds two of those, so that a healthy run never uses its last claims up for another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from uuid import UUID

from backend.engine.claiming import Claimed


class Suspects:
    """The one run under suspicion that this process drives, and those that wait for it to get on."""

    def __init__(self) -> None:
        self._driven: UUID | None = None
        self._waiting: set[UUID] = set()
        self._one_by_one = asyncio.Lock()

    async def claim(self, run_id: UUID, take_up: Callable[[], Awaitable[Claimed | None]]) -> Claimed | None:
        """Take a run up that may be under suspicion; None while another one is driven here, or if there is nothing."""
        async with self._one_by_one:
            if self._driven is not None:
                self._waiting.add(run_id)
                return None
            claimed = await take_up()
            if claimed is not None:
                self._driven = run_id
            return claimed

    def clear(self, run_id: UUID) -> frozenset[UUID]:
        """The run got on, or is driven no more; returns the runs that waited for it and are to be rung for."""
        if self._driven != run_id:
            return frozenset()
        self._driven = None
        waiting, self._waiting = frozenset(self._waiting), set()
        return waiting
