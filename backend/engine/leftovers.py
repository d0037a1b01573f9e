"""Removes the worktrees of runs that have ended, however they ended and whichever worker was killed meanwhile.

A run's row is locked while its directory is taken away by one rename, so that a retry never loses a tree it works in.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from sqlalchemy import select

from backend.adapters.db.engine import AWAY, Sessions
from backend.adapters.db.tables import ProjectRun
from backend.adapters.workspace import tree

_log = logging.getLogger(__name__)


class Leftovers:
    """The worktrees below one state directory."""

    def __init__(self, sessions: Sessions, home: Path) -> None:
        """Look after `<home>/worktrees`, which need not exist."""
        self._sessions, self._trees = sessions, home / "worktrees"

    async def remove(self, run_id: UUID) -> bool:
        """Remove the worktrees of a run if it has ended or is gone; twice is the same as once."""
        place = self._trees / str(run_id)
        if not place.exists():
            return True
        async with self._sessions.begin() as session:
            ended = await session.execute(
                select(ProjectRun.ended_at).where(ProjectRun.id == run_id).with_for_update(key_share=True)
            )
            row = ended.one_or_none()
            if row is not None and row.ended_at is None:
                return False
            grave = await asyncio.to_thread(tree.bury, place)
        if grave is not None:
            await asyncio.to_thread(tree.remove, grave)
        return True

    async def sweep(self) -> int:
        """Remove what runs left behind that ended without us; return how many places were cleared."""
        names = await asyncio.to_thread(self._names)
        for grave in (name for name in names if name.startswith(tree.GRAVE)):
            await asyncio.to_thread(tree.remove, self._trees / grave)
        removed = [name for name in _runs(names) if await self.remove(name)]
        return len(removed)

    async def ended(self) -> list[UUID]:
        """Whose worktrees a sweep would remove: runs that have ended or are gone."""
        found = _runs(await asyncio.to_thread(self._names))
        async with self._sessions() as session:
            alive = await session.scalars(
                select(ProjectRun.id).where(ProjectRun.id.in_(found), ProjectRun.ended_at.is_(None))
            )
            working = set(alive)
        return [run_id for run_id in found if run_id not in working]

    async def keep_sweeping(self, *, every: float) -> None:
        """Sweep until cancelled; what goes wrong costs a warning and a round."""
        while True:
            try:
                await self.sweep()
            except AWAY as error:
                _log.warning("Worktrees of ended runs could not be removed: %s", error)
            await asyncio.sleep(every)

    def _names(self) -> list[str]:
        return sorted(entry.name for entry in self._trees.iterdir()) if self._trees.is_dir() else []


def _runs(names: Sequence[str]) -> list[UUID]:
    found = []
    for name in names:
        try:
            found.append(UUID(name))
        except ValueError:
            continue
    return found
