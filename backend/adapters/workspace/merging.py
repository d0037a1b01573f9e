"""Three-way merges without a branch or a checkout, also with a git before 2.38 (no `merge-tree --write-tree`)."""

from __future__ import annotations

import asyncio
import re
import uuid
from pathlib import Path

from backend.adapters.workspace import tree
from backend.adapters.workspace.git import Git
from backend.errors import Invalid


async def merge_trees(git: Git, ours: str, theirs: str, scratch: Path) -> tuple[str | None, list[str]]:
    """Merge two commits; return the merged tree, or None and the paths in conflict."""
    base = await git.run("merge-base", ours, theirs, ok=(0, 1))
    if base.code != 0:
        raise Invalid(f"The commits {ours} and {theirs} have no common history, so they cannot be merged.")
    if await _writes_trees(git):
        return await _by_merge_tree(git, ours, theirs)
    return await by_index(git, base.text.split()[0], ours, theirs, scratch)


async def _writes_trees(git: Git) -> bool:
    version = re.search(r"(\d+)\.(\d+)", (await git.run("version")).text)
    return version is not None and (int(version[1]), int(version[2])) >= (2, 38)


async def _by_merge_tree(git: Git, ours: str, theirs: str) -> tuple[str | None, list[str]]:
    merged = await git.run("merge-tree", "--write-tree", "--name-only", "--no-messages", "-z", ours, theirs, ok=(0, 1))
    parts = [part.decode("utf-8", "replace") for part in merged.stdout.split(b"\0") if part]
    if merged.code == 0:
        return parts[0].strip(), []
    return None, sorted(set(parts[1:])) or ["(unknown path)"]


async def by_index(git: Git, base: str, ours: str, theirs: str, scratch: Path) -> tuple[str | None, list[str]]:
    """Merge in a throw-away index and directory: git's own file merger, without detection of renames."""
    place = scratch / f"merge-{uuid.uuid4().hex}"
    await asyncio.to_thread(tree.empty, place)
    work = place / "work"
    await asyncio.to_thread(work.mkdir)
    env = {"GIT_WORK_TREE": str(work), "GIT_INDEX_FILE": str(place / "index")}
    try:
        await git.run("read-tree", "-i", "-m", "--aggressive", base, ours, theirs, env=env)
        unmerged = await git.run("ls-files", "--unmerged", "-z", env=env)
        conflicts: list[str] = []
        for path in sorted({row.split(b"\t", 1)[1] for row in unmerged.stdout.split(b"\0") if row}):
            if not await _merge_file(git, path, unmerged.stdout, work, env):
                conflicts.append(path.decode("utf-8", "replace"))
        if conflicts:
            return None, conflicts
        return (await git.run("write-tree", env=env)).text, []
    finally:
        await asyncio.to_thread(tree.remove, place)


async def _merge_file(git: Git, path: bytes, unmerged: bytes, work: Path, env: dict[str, str]) -> bool:
    """Merge one file whose three sides are text files; anything else (deleted, link, binary) is a conflict."""
    sides: dict[int, tuple[str, str]] = {}
    for row in unmerged.split(b"\0"):
        head, _, name = row.partition(b"\t")
        if name == path:
            mode, blob, stage = head.decode().split(" ")
            sides[int(stage)] = (mode, blob)
    if set(sides) != {1, 2, 3} or len({mode for mode, _ in sides.values()} - {"100644", "100755"}) > 0:
        return False
    names: dict[int, Path] = {}
    for number, (_, side) in sides.items():
        names[number] = work / str(number)
        body = (await git.run("cat-file", "blob", side)).stdout
        await asyncio.to_thread(names[number].write_bytes, body)
    merged = await git.run(
        "merge-file", "-p", "--quiet", str(names[2]), str(names[1]), str(names[3]), ok=tuple(range(256))
    )
    if merged.code != 0:
        return False
    blob = (await git.run("hash-object", "-w", "--stdin", stdin=merged.stdout)).text
    record = f"{sides[2][0]} {blob} 0\t".encode() + path + b"\0"
    await git.run("update-index", "-z", "--index-info", stdin=record, env=env)
    return True
