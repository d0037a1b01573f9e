"""What one scanner found, before and after it gets fingerprints that survive line moves."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from backend.domain.finding import Severity, fingerprint
from backend.domain.ports import CommandResult, ScanFinding, ScannerRun
from backend.domain.secret import literals, masked

_LONGEST_MESSAGE = 1000
_DEATHS = {128 + number: number.name for number in signal.Signals}
"""Exit codes of a program that a signal ended."""


@dataclass(frozen=True, slots=True)
class Raw:
    """One thing found at a place; `path` is relative to the tree."""

    rule: str
    severity: Severity
    path: str | None
    line: int | None
    message: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """One scanner's run and what it found."""

    run: ScannerRun
    found: tuple[Raw, ...] = ()


def failed(
    scanner: str, version: str, why: str, *, expected: int = 0, scanned: int = 0, seconds: float = 0.0
) -> Outcome:
    """Return the outcome of a scanner whose word cannot be trusted."""
    return Outcome(ScannerRun(scanner, version, expected, scanned, seconds, why))


def installed(package: str) -> str:
    """Return the version of a package, or nothing where it is missing: its program says so then, and its gate fails."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def cut_short(done: CommandResult) -> str | None:
    """Say what ended a program before its own end; whatever it had answered by then proves nothing."""
    if done.killed_by:
        return f"it was killed at the limit of {done.killed_by}"
    death = _DEATHS.get(done.exit_code)
    return f"it died of {death}" if death else None


def unreadable(done: CommandResult, why: str = "") -> str:
    """Say that a program ended by itself and left an answer that cannot be read."""
    said = done.stderr.strip()[-300:] or why or "it said nothing of why"
    return f"it ended with code {done.exit_code} and left no answer that can be read: {said}"


def secrets_at(found: Sequence[Raw], root: Path) -> frozenset[str]:
    """Return what may be the secrets in the lines that these findings of secrets point at."""
    lines: dict[str, list[str]] = {}
    return frozenset(value for raw in found if raw.line for value in literals(_line(root, raw, lines)))


def fingerprinted(scanner: str, found: Sequence[Raw], root: Path, secrets: Collection[str] = ()) -> list[ScanFinding]:
    """Give each finding its fingerprint, equal lines counted in order; exact repeats are dropped.

    Messages come out without the `secrets` and without what looks like one.
    """
    lines: dict[str, list[str]] = {}
    seen: Counter[tuple[str, str, str]] = Counter()
    done: list[ScanFinding] = []
    unique = dict.fromkeys(found)
    for raw in sorted(unique, key=lambda raw: (raw.path or "", raw.line or 0, raw.rule, raw.message)):
        snippet = _line(root, raw, lines)
        key = (raw.rule, raw.path or "", snippet)
        mark = fingerprint(scanner, raw.rule, raw.path or "", snippet, seen[key])
        seen[key] += 1
        message = masked(raw.message.replace("\0", "")[: 4 * _LONGEST_MESSAGE], secrets)[:_LONGEST_MESSAGE]
        done.append(ScanFinding(mark, scanner, raw.rule, raw.severity, raw.path, raw.line, message))
    return done


def _line(root: Path, raw: Raw, lines: dict[str, list[str]]) -> str:
    if raw.path is None or raw.line is None:
        return raw.message
    if raw.path not in lines:
        place = root / raw.path
        inside = place.resolve().is_relative_to(root.resolve()) and place.is_file()
        lines[raw.path] = place.read_text("utf-8", "replace").splitlines() if inside else []
    known = lines[raw.path]
    return known[raw.line - 1] if 0 < raw.line <= len(known) else raw.message
