"""A plain directory that holds a commit's files: how it is emptied, checked and kept free of what git must not see.

There is no `.git` in it, so nothing that a command writes there can become git's configuration.
"""

from __future__ import annotations

import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

from backend.errors import Invalid

LARGEST_FILE = 50_000_000
MOST_FILES = 100_000


def empty(path: Path) -> None:
    """Make `path` an empty directory, whatever was there before, also read-only or half-made."""
    remove(path)
    path.mkdir(parents=True)


GRAVE = ".gone-"
"""How the name of a directory begins that waits for its removal."""


def remove(path: Path) -> None:
    """Remove a directory whole; it need not exist. It is renamed first, so a half-done removal is never seen."""
    grave = path if path.name.startswith(GRAVE) else bury(path)
    if grave is not None and grave.is_dir():
        shutil.rmtree(grave, onerror=_open_and_retry)


def bury(path: Path) -> Path | None:
    """Take a directory away by one rename, to be removed; None where there was none (a file or link goes at once)."""
    if path.is_symlink() or path.is_file():
        path.unlink()
        return None
    if not path.exists():
        return None
    grave = path.with_name(f"{GRAVE}{uuid.uuid4().hex}")
    path.rename(grave)
    return grave


def _open_and_retry(function: object, path: str, _: object) -> None:
    """Give the owner the rights that a command took away, then go on; what still will not go stays in the grave."""
    parent = os.path.dirname(path)  # noqa: PTH120  (rmtree speaks in strings)
    for name in (parent, path):
        if not os.path.islink(name) and os.path.isdir(name):  # noqa: PTH112, PTH114  (as above)
            os.chmod(name, 0o700)  # noqa: PTH101, S103  (our own directory)
    if os.path.isdir(path) and not os.path.islink(path):  # noqa: PTH112, PTH114  (as above)
        shutil.rmtree(path, ignore_errors=True)
    else:
        os.unlink(path)  # noqa: PTH108  (as above)


def entries(root: Path) -> Iterator[os.DirEntry[str]]:
    """Yield every entry below `root`, links not followed; a directory comes before its contents.

    Directories and files that a command closed to their owner are opened again on the way.
    """
    waiting = [str(root)]
    while waiting:
        with os.scandir(waiting.pop()) as directory:
            for entry in directory:
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    _open(entry, 0o700)
                    waiting.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    _open(entry, 0o600)


def _open(entry: os.DirEntry[str], rights: int) -> None:
    mode = stat.S_IMODE(entry.stat(follow_symlinks=False).st_mode)
    if mode & rights != rights:
        Path(entry.path).chmod(mode | rights)


def drop_repositories(root: Path) -> None:
    """Remove every nested `.git` (file, link or directory) that a command left in the tree."""
    for entry in list(entries(root)):
        if entry.name.lower() in {".git", "git~1"} and os.path.lexists(entry.path):
            path = Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(path, onerror=_open_and_retry)
            else:
                path.unlink()


def check(root: Path) -> None:
    """Refuse a tree with links that lead out of it, files that are too large, or too many files (`Invalid`)."""
    resolved = root.resolve()
    for number, entry in enumerate(entries(root), start=1):
        shown = os.path.relpath(entry.path, root)
        if number > MOST_FILES:
            raise Invalid(f"The tree holds over {MOST_FILES} files. Remove what was generated.", code="tree_invalid")
        if entry.is_symlink():
            if not Path(entry.path).resolve().is_relative_to(resolved):
                raise Invalid(f"The link {shown!r} leads out of the repository. Remove it.", code="tree_invalid")
        elif entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_size > LARGEST_FILE:
            raise Invalid(
                f"The file {shown!r} is larger than {LARGEST_FILE // 1_000_000} MB. Remove it or make it smaller.",
                code="tree_invalid",
            )
