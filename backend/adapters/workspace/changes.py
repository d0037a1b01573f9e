"""Reading what git says about changes: unified diffs, name lists, blame; pure text in, dataclasses out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from backend.domain.ports import Diff, DiffFile

_HUNK = re.compile(rb"^@@ -\d+(?:,\d+)? \+(\d+)(?:,(\d+))? @@")


@dataclass(frozen=True, slots=True)
class Blame:
    """Which commit last touched a line, and what its message says."""

    commit: str
    author: str
    summary: str
    trailers: Mapping[str, str]
    text: str
    """The line itself."""


def diff(names: bytes, unified: bytes, limit: int, *, cut: bool) -> Diff:
    """Put a diff together from `--raw --numstat -z` and the unified text; the text is cut at a line end."""
    lines = touched_lines(unified)
    files = tuple(
        DiffFile(path, status, added, removed, lines.get(path, ())) for path, status, added, removed in _numbers(names)
    )
    text = unified.decode("utf-8", "replace")
    if len(text) > limit:
        text = text[:limit].rsplit("\n", 1)[0] + "\n"
        cut = True
    return Diff(text, files, cut)


def _numbers(names: bytes) -> list[tuple[str, str, int, int]]:
    """Read `git diff --raw --numstat -z --no-renames`: (path, status letter, added, removed), sorted by path."""
    status: dict[str, str] = {}
    counts: dict[str, tuple[int, int]] = {}
    fields = iter(names.split(b"\0"))
    for field in fields:
        if field.startswith(b":"):
            letter = field.rsplit(b" ", 1)[-1].decode()[:1]
            status[_name(next(fields))] = letter
        elif field.count(b"\t") >= 2:
            added, removed, path = field.split(b"\t", 2)
            counts[_name(path)] = (_count(added), _count(removed))
    return [(path, status[path], *counts.get(path, (0, 0))) for path in sorted(status)]


def _count(number: bytes) -> int:
    return int(number) if number.isdigit() else 0  # git writes "-" for binary files


def _name(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def touched_lines(unified: bytes) -> dict[str, tuple[int, ...]]:
    """Return the numbers of the added lines by path of the new file."""
    found: dict[str, list[int]] = {}
    path: str | None = None
    number = left = 0
    for line in unified.split(b"\n"):
        if left > 0 and line[:1] in (b"+", b" "):
            if line[:1] == b"+" and path is not None:
                found.setdefault(path, []).append(number)
            number += 1
            left -= 1
        elif hunk := _HUNK.match(line):
            number, left = int(hunk[1]), int(hunk[2] or 1)
        elif left <= 0 and line.startswith(b"+++ "):
            path = _new_path(line[4:])
    return {path: tuple(lines) for path, lines in found.items()}


def _new_path(raw: bytes) -> str | None:
    raw = raw.rstrip(b"\t")
    if raw.startswith(b'"') and raw.endswith(b'"'):
        raw = raw[1:-1].decode("unicode_escape").encode("latin-1", "replace")
    return _name(raw[2:]) if raw.startswith(b"b/") else None


def blame(porcelain: str, message: str) -> Blame | None:
    """Read one line of `git blame --porcelain` and the message of its commit."""
    rows = porcelain.splitlines()
    if not rows or not re.match(r"^[0-9a-f]{40,64} ", rows[0]):
        return None
    told = dict(row.split(" ", 1) for row in rows[1:] if not row.startswith("\t") and " " in row)
    text = next((row[1:] for row in rows if row.startswith("\t")), "")
    return Blame(rows[0].split(" ")[0], told.get("author", ""), told.get("summary", ""), trailers(message), text)


def trailers(message: str) -> dict[str, str]:
    """Return the trailers of a commit message: the `Key: value` lines of its last paragraph."""
    paragraphs = re.split(r"\n\s*\n", message.strip())
    if len(paragraphs) < 2:
        return {}
    pairs = [re.fullmatch(r"([A-Za-z][A-Za-z0-9-]*): (.*)", row) for row in paragraphs[-1].splitlines()]
    return {pair[1]: pair[2].strip() for pair in pairs if pair} if all(pairs) else {}


def message_with(message: str, values: Mapping[str, str]) -> str:
    """Return a commit message that ends in exactly these trailers, whatever the message itself contains."""
    clean = re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", message.replace("\r\n", "\n")).strip() or "Change"
    rows = [f"{key}: {' '.join(str(value).split())}" for key, value in values.items()]
    if not rows:
        return clean + "\n"
    return clean + "\n\n" + "\n".join(rows) + "\n"
