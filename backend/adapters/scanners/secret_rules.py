"""The second secret rule set, our own: the shapes of well-known tokens, and random strings given to telling names."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from backend.adapters.scanners.found import Outcome, Raw
from backend.adapters.scanners.prepared import is_test
from backend.domain import secret
from backend.domain.finding import Severity
from backend.domain.ports import ScannerRun

NAME = "secret-rules"
VERSION = "1"
_LONGEST_LINE = 4000


def scan(root: Path, texts: Sequence[str]) -> Outcome:
    """Look at every line of every text file."""
    started = time.monotonic()
    found = [raw for path in texts for raw in _in_file(path, (root / path).read_text("utf-8", "replace"))]
    run = ScannerRun(NAME, VERSION, len(texts), len(texts), time.monotonic() - started)
    return Outcome(run, tuple(found))


def _in_file(path: str, body: str) -> Iterator[Raw]:
    for number, line in enumerate(body.splitlines(), start=1):
        for start in range(0, max(1, len(line)), _LONGEST_LINE - 200):
            yield from _in_line(path, number, line[start : start + _LONGEST_LINE])


def _in_line(path: str, number: int, line: str) -> Iterator[Raw]:
    for found in secret.occurrences(line):
        if found.rule == secret.HARD_CODED:
            severity = Severity.MEDIUM if is_test(path) else Severity.HIGH
            yield Raw(found.rule, severity, path, number, "A secret is written into the source.")
        else:
            message = f"This looks like a real {found.rule.replace('-', ' ')}."
            yield Raw(found.rule, Severity.CRITICAL, path, number, message)
