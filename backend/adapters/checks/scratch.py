"""A throw-away copy of a commit that a check may run in: `tree/` with the files, `out/` for what the check writes.

What the company writes for the check lies apart, in `control/`, where the sandbox cannot put a link in the way.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from backend.adapters.workspace import GitWorkspace, tree


@dataclass(frozen=True, slots=True)
class Scratch:
    """Where a check works; `root` holds `tree` and `out`, and is all that the sandbox may write."""

    root: Path
    tree: Path
    out: Path
    control: Path

    def read(self, name: str, limit: int = 20_000_000) -> bytes:
        """Return the beginning of a file in `out/`, empty where there is none; links are not followed."""
        path = self.out / name
        if path.resolve() != path or not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(limit)


@asynccontextmanager
async def scratch(workspace: GitWorkspace, commit: str) -> AsyncIterator[Scratch]:
    """Copy a commit to a directory of its own, without compiled files, and remove all of it afterwards."""
    home = workspace.trees.resolve() / f"check-{uuid.uuid4().hex}"
    place = Scratch(home / "work", home / "work" / "tree", home / "work" / "out", home / "control")
    try:
        await asyncio.to_thread(_make, place)
        await workspace.export(commit, place.tree)
        await asyncio.to_thread(_drop_compiled, place.tree)
        yield place
    finally:
        await asyncio.shield(asyncio.to_thread(tree.remove, home))


def _make(place: Scratch) -> None:
    place.tree.mkdir(parents=True)
    place.out.mkdir()
    place.control.mkdir()


def _drop_compiled(root: Path) -> None:
    """Remove compiled Python: it would run instead of the source that was reviewed."""
    for entry in list(tree.entries(root)):
        if entry.name.endswith((".pyc", ".pyo")) and entry.is_file(follow_symlinks=False):
            Path(entry.path).unlink()
