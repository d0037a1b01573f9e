"""A commit as an archive: the same bytes for the same commit, and nothing in it that could be unpacked elsewhere.

Only regular files and links inside the tree are packed; names are checked again, whatever git allowed.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import re
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal
from uuid import UUID

from backend.adapters.workspace import GitWorkspace, tree
from backend.errors import Invalid

Format = Literal["zip", "tar.gz"]
MEDIA_TYPES: dict[Format, str] = {"zip": "application/zip", "tar.gz": "application/gzip"}
_LARGEST = 512 * 1024 * 1024
_BORN = (1980, 1, 1, 0, 0, 0)
_BORN_SECONDS = 315_532_800


@dataclass(frozen=True, slots=True)
class _Entry:
    path: str
    mode: int
    body: bytes


async def archive(workspace: GitWorkspace, commit: str, form: Format, *, top: str) -> bytes:
    """Return a commit's files as an archive below one folder `top`.

    Raises `NotFound` for an unknown commit and `Invalid` for a tree that is too large or has dangerous names.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", top):
        raise Invalid(f"{top!r} cannot name the folder of an archive.")
    entries = await _entries(workspace, commit)
    pack = _zip if form == "zip" else _tar
    return await asyncio.to_thread(pack, entries, top)


async def remove_project(home: Path, project_id: UUID) -> None:
    """Remove a project's repository; twice is the same as once."""
    await asyncio.to_thread(tree.remove, home / "repositories" / f"{project_id}.git")


async def remove_run(home: Path, run_id: UUID) -> None:
    """Remove a run's worktrees; twice is the same as once."""
    await asyncio.to_thread(tree.remove, home / "worktrees" / str(run_id))


async def _entries(workspace: GitWorkspace, commit: str) -> list[_Entry]:
    await workspace.files(commit)  # refuses what is no commit
    listed = await workspace.git.run("ls-tree", "-r", "-l", "-z", commit)
    rows = [row for row in listed.stdout.split(b"\0") if row]
    blobs: list[tuple[str, int, bytes]] = []
    total = 0
    for row in rows:
        head, _, raw = row.partition(b"\t")
        mode, kind, blob, size = head.split()
        if kind == b"blob":
            total += int(size)
            blobs.append((_safe(raw), int(mode, 8), blob))
    if total > _LARGEST:
        raise Invalid(f"The commit is larger than {_LARGEST // 1024**2} MB. Clone the repository instead.")
    asked = b"".join(blob + b"\n" for _, _, blob in blobs)
    answer = (await workspace.git.run("cat-file", "--batch", stdin=asked, limit=2 * _LARGEST)).stdout
    bodies = _bodies(answer, len(blobs))
    found = [_Entry(path, mode, body) for (path, mode, _), body in zip(blobs, bodies, strict=True)]
    return [entry for entry in found if not _is_link(entry) or _leads_inside(entry)]


def _bodies(answer: bytes, count: int) -> Iterator[bytes]:
    at = 0
    for _ in range(count):
        end = answer.index(b"\n", at)
        size = int(answer[at:end].split(b" ")[2])
        yield answer[end + 1 : end + 1 + size]
        at = end + size + 2


def _safe(raw: bytes) -> str:
    """Return a path that unpacks below its folder on every system, or refuse."""
    try:
        path = raw.decode("utf-8")
    except UnicodeDecodeError:
        path = ""
    parts = PurePosixPath(path).parts
    bad = not parts or path.startswith("/") or ".." in parts or "\\" in path or ":" in parts[0]
    if bad or re.search(r"[\x00-\x1f]", path) or any(part.lower() == ".git" for part in parts):
        raise Invalid(f"The name {raw[:200]!r} cannot be put into an archive. Rename the file.")
    return path


def _is_link(entry: _Entry) -> bool:
    return stat.S_ISLNK(entry.mode)


def _leads_inside(entry: _Entry) -> bool:
    target = entry.body.decode("utf-8", "replace")
    if target.startswith("/") or "\\" in target or "\0" in target:
        return False
    depth = len(PurePosixPath(entry.path).parts) - 1
    for part in PurePosixPath(target).parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return False
    return True


def _zip(entries: list[_Entry], top: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in entries:
            info = zipfile.ZipInfo(f"{top}/{entry.path}", _BORN)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = 3
            info.external_attr = entry.mode << 16
            packed.writestr(info, entry.body)
    return out.getvalue()


def _tar(entries: list[_Entry], top: str) -> bytes:
    out = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=out, mode="wb", mtime=_BORN_SECONDS, filename="") as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as packed,
    ):
        for entry in entries:
            info = tarfile.TarInfo(f"{top}/{entry.path}")
            info.mtime = _BORN_SECONDS
            info.mode = stat.S_IMODE(entry.mode) or 0o777
            if _is_link(entry):
                info.type, info.linkname = tarfile.SYMTYPE, entry.body.decode("utf-8", "replace")
                packed.addfile(info)
            else:
                info.size = len(entry.body)
                packed.addfile(info, io.BytesIO(entry.body))
    return out.getvalue()
