"""Reading and changing files of a worktree without ever leaving it: links are resolved, `.git` is closed."""

from __future__ import annotations

import ast
import os
import re
import stat
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from backend.errors import Invalid

LARGEST = 2_000_000
_MOST_HITS = 50
_SEARCH_BYTES = 50_000_000
_CLOSED = frozenset({".git", ".company"})
_NOISE = frozenset({"__pycache__", "node_modules", ".venv", ".pytest_cache"})


def inside(root: Path, path: str) -> Path:
    """Return the absolute path of something in the tree; `Invalid` for what is outside of it or closed."""
    pure = PurePosixPath(path)
    if "\0" in path or pure.is_absolute() or ".." in pure.parts:
        raise Invalid(f"{path!r} is not a path inside the repository. Name it from the top of the repository.")
    if any(part.lower() in _CLOSED for part in pure.parts):
        raise Invalid(f"{path!r} belongs to the company, not to the project. Leave it alone.")
    real = (root / pure).resolve()
    if not real.is_relative_to(root) or any(part.lower() in _CLOSED for part in real.relative_to(root).parts):
        raise Invalid(f"{path!r} leads out of the repository through a link.")
    return real


def read(path: Path, shown: str) -> str:
    """Return a file's text; `Invalid` where it is not a regular, readable text file."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise Invalid(f"There is no file {shown!r}. See list_files.") from None
    except OSError as failed:
        raise Invalid(f"{shown!r} cannot be read: {failed.strerror}.") from None
    seen = os.fstat(handle)
    if not stat.S_ISREG(seen.st_mode):
        os.close(handle)
        raise Invalid(f"{shown!r} is not a file.")
    with os.fdopen(handle, "rb") as file:
        if seen.st_size > LARGEST:
            raise Invalid(f"{shown!r} is larger than {LARGEST // 1_000_000} MB. Use search, or run with head or sed.")
        body = file.read(LARGEST + 1)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise Invalid(f"{shown!r} is not UTF-8 text.") from None
    if "\0" in text:
        raise Invalid(f"{shown!r} is not text.")
    return text


def write(path: Path, shown: str, text: str) -> None:
    """Write a file whole or not at all; Python that does not parse is refused (`Invalid`)."""
    if path.is_dir():
        raise Invalid(f"{shown!r} is a folder. Name a file.")
    if len(text.encode("utf-8", "replace")) > LARGEST:
        raise Invalid(f"{shown!r} would be larger than {LARGEST // 1_000_000} MB. Split it.")
    if "\0" in text:
        raise Invalid(f"{shown!r} would contain a NUL character. Leave it out.")
    if path.suffix in {".py", ".pyi"}:
        _parse(text, shown)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o644
        draft = path.with_name(f".{path.name[:100]}.draft")
        draft.write_text(text, encoding="utf-8", errors="replace", newline="")
        draft.chmod(mode)
        draft.replace(path)
    except OSError as failed:
        raise Invalid(f"{shown!r} cannot be written: {failed.strerror}.") from None


def _parse(text: str, shown: str) -> None:
    try:
        ast.parse(text)
    except SyntaxError as bad:
        line = (bad.text or "").rstrip()
        raise Invalid(
            f"{shown} was not written, because it would not parse: line {bad.lineno}: {bad.msg}: {line}"
        ) from None
    except (ValueError, RecursionError, MemoryError) as bad:
        raise Invalid(f"{shown} was not written, because it would not parse: {bad}.") from None


def listing(root: Path, start: Path, depth: int) -> list[str]:
    """Return the names below `start`, folders with a slash, to a depth, sorted; generated folders are left out."""
    rows: list[str] = []
    for path, level in _walk(start):
        if level <= depth:
            rows.append(f"{path.relative_to(root)}{'/' if path.is_dir() and not path.is_symlink() else ''}")
    return rows


def _walk(start: Path, level: int = 1) -> Iterator[tuple[Path, int]]:
    for path in sorted(start.iterdir()):
        if path.name in _NOISE or path.name in _CLOSED:
            continue
        yield path, level
        if path.is_dir() and not path.is_symlink() and level < 40:
            yield from _walk(path, level + 1)


def search(root: Path, pattern: re.Pattern[str], glob: str | None) -> tuple[list[str], bool]:
    """Return at most 50 hits as `file:line: text`, and whether there were more; a bad expression may take for ever."""
    hits: list[str] = []
    budget = _SEARCH_BYTES
    for path, _ in _walk(root):
        shown = str(path.relative_to(root))
        if not path.is_file() or path.is_symlink() or (glob and not _matches(shown, glob)):
            continue
        budget -= min(path.stat().st_size, LARGEST)
        if budget < 0:
            return hits, True
        try:
            text = read(path, shown)
        except Invalid:
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            if pattern.search(line[:2000]):
                if len(hits) == _MOST_HITS:
                    return hits, True
                hits.append(f"{shown}:{number}: {line.strip()[:300]}")
    return hits, False


def _matches(shown: str, glob: str) -> bool:
    return fnmatch(shown, glob) or fnmatch(shown, glob.replace("**/", "")) or fnmatch(Path(shown).name, glob)
