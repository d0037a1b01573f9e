"""What `company gc` removes: each heap by a rule of its own, counted before anything goes.

Rules look at rows first: a file goes only when no row names it, is old enough, and lies in a state directory that
belongs to this database. What an auditor reads goes only with a project that was archived long enough ago.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, any_, literal, select, text

from backend.adapters import export
from backend.adapters.db.checkpointer.retention import keep_latest
from backend.adapters.db.engine import Sessions, transaction
from backend.adapters.db.tables import Artifact, Project
from backend.domain.ports import Bell
from backend.engine.leftovers import Leftovers
from backend.errors import Conflict, NotFound
from backend.operations import projects, repositories
from backend.settings import RetentionSettings

DAY = 86_400.0
_MOST = 10_000
_THICK = text(
    "SELECT c.thread_id AS run_id, sum(pg_column_size(c.*)) AS bytes FROM checkpoints c"
    " JOIN project_runs r ON r.id = c.thread_id"
    " WHERE r.ended_at < clock_timestamp() - make_interval(days => :days)"
    " AND r.config_snapshot -> 'retention' ->> 'checkpoints' IS DISTINCT FROM 'all'"
    " AND c.number < (SELECT max(o.number) FROM checkpoints o WHERE o.thread_id = c.thread_id"
    " AND o.namespace = c.namespace)"
    " GROUP BY c.thread_id ORDER BY c.thread_id LIMIT :most"
)
_PUT_AWAY = text(
    "SELECT id, tenant_id FROM projects WHERE status = 'ARCHIVED'"
    " AND archived_at < clock_timestamp() - make_interval(days => :days) ORDER BY archived_at LIMIT :most"
)


@dataclass(frozen=True, slots=True)
class Heap:
    """What one rule found, and removed unless it was asked only to look."""

    name: str
    sentence: str
    count: int = 0
    size: int = 0
    """Bytes, as far as they can be told beforehand."""


@dataclass(frozen=True)
class Garbage:
    """The rules over one installation."""

    sessions: Sessions
    pool: Any
    bell: Bell
    home: Path
    keep: RetentionSettings

    async def collect(self, *, dry: bool) -> list[Heap]:
        """Apply every rule in turn; with `dry`, only look."""
        return [await rule(self, dry) for rule in RULES]

    async def checkpoints(self, dry: bool) -> Heap:
        """Ended runs keep their newest checkpoint."""
        if not self.keep.checkpoint_days:
            return Heap("checkpoints", "are kept for ever")
        async with self.sessions() as session:
            found = await session.execute(_THICK, {"days": self.keep.checkpoint_days, "most": _MOST})
            thick = {row.run_id: int(row.bytes) for row in found}
        for run_id in () if dry else thick:
            await keep_latest(self.pool, run_id)
        sentence = f"all but the newest of runs that ended {self.keep.checkpoint_days} days ago"
        return Heap("checkpoints", sentence, len(thick), sum(thick.values()))

    async def archived(self, dry: bool) -> Heap:
        """Archived projects go whole."""
        if not self.keep.archived_days:
            return Heap("archived projects", "are kept for ever")
        async with self.sessions() as session:
            found = await session.execute(_PUT_AWAY, {"days": self.keep.archived_days, "most": _MOST})
            away = [(row.id, row.tenant_id) for row in found]
        gone = len(away) if dry else sum([await self._delete(*project) for project in away])
        return Heap("archived projects", f"put away {self.keep.archived_days} days ago, with all that they made", gone)

    async def _delete(self, project_id: UUID, tenant_id: UUID) -> bool:
        try:
            async with transaction(self.sessions, self.bell) as session:
                remove = partial(repositories.remove, self.home)
                await projects.delete(session, project_id, remove=remove, tenant_id=tenant_id)
        except (Conflict, NotFound):
            return False
        return True

    async def worktrees(self, dry: bool) -> Heap:
        """Runs that have ended or are gone need no worktree."""
        leftovers = Leftovers(self.sessions, self.home)
        count = len(await leftovers.ended()) if dry else await leftovers.sweep()
        return Heap("worktrees", "of runs that have ended or are gone", count)

    async def repositories(self, dry: bool) -> Heap:
        """Repositories of projects that are gone."""
        root = self.home / "repositories"
        paths = {UUID(path.stem): path for path in _listed(root, "*.git") if _is_id(path.stem)}
        return await self._files("repositories", "of projects that are gone", paths, Project.id, dry, self._drop)

    async def _drop(self, path: Path) -> None:
        await export.remove_project(self.home, UUID(path.stem))

    async def bodies(self, dry: bool) -> Heap:
        """Stored bodies that no artifact names, and drafts of a process that died."""
        root = self.home / "artifacts"
        paths = {path.name: path for path in _listed(root, "*/*")}
        return await self._files("artifacts", "bodies that no row names", paths, Artifact.sha256, dry, _unlink)

    async def _files(
        self,
        name: str,
        sentence: str,
        paths: dict[Any, Path],
        column: Any,
        dry: bool,
        remove: Callable[[Path], Awaitable[None]],
    ) -> Heap:
        """Files whose key no row has; none at all where no row has any: then they are another database's."""
        if not paths or not self.keep.orphan_days:
            return Heap(name, sentence)
        async with self.sessions() as session:
            # One array: a statement has room for some ten thousand arguments, a store for more files.
            named = literal(list(paths), ARRAY(column.type))
            known = set(await session.scalars(select(column).where(column == any_(named))))
        if not known:
            return Heap(name, "of another database, it seems: none of them is known here, so they are left alone")
        oldest = time.time() - self.keep.orphan_days * DAY
        orphans = [path for key, path in paths.items() if key not in known]
        sizes = {path: await asyncio.to_thread(_size, path) for path in orphans if path.stat().st_mtime < oldest}
        for path in [] if dry else sizes:
            await remove(path)
        return Heap(name, sentence, len(sizes), sum(sizes.values()))


RULES: tuple[Callable[[Garbage, bool], Awaitable[Heap]], ...] = (
    Garbage.checkpoints,
    Garbage.archived,
    Garbage.worktrees,
    Garbage.repositories,
    Garbage.bodies,
)


def _listed(root: Path, pattern: str) -> Iterable[Path]:
    return sorted(root.glob(pattern)) if root.is_dir() else ()


def _is_id(name: str) -> bool:
    try:
        UUID(name)
    except ValueError:
        return False
    return True


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [entry for entry in path.rglob("*") if entry.is_file()]
    return sum(entry.stat().st_size for entry in files)


async def _unlink(path: Path) -> None:
    await asyncio.to_thread(path.unlink, missing_ok=True)
