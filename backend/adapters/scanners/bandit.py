"""bandit over every Python file; a file it could not parse fails the scanner."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from backend.adapters.checks.scratch import Scratch
from backend.adapters.sandbox import Sandbox
from backend.adapters.scanners.found import Outcome, Raw, cut_short, failed, installed, unreadable
from backend.adapters.scanners.prepared import is_test
from backend.domain.config import SandboxConfig
from backend.domain.finding import Severity
from backend.domain.ports import ScannerRun

NAME = "bandit"
PASSWORDS = frozenset({"B105", "B106", "B107"})
_IN_TESTS = frozenset({"B101"})
_PYCRYPTO_ONLY = frozenset({"B413"})
_SEVERITY = {"LOW": Severity.LOW, "MEDIUM": Severity.MEDIUM, "HIGH": Severity.HIGH}


async def scan(place: Scratch, texts: Sequence[str], sandbox: Sandbox, config: SandboxConfig) -> Outcome:
    """Run bandit without the project's exclusions or waivers."""
    wanted = [path for path in texts if path.endswith((".py", ".pyw"))]
    release = installed("bandit")
    if not wanted:
        return Outcome(ScannerRun(NAME, release, 0, 0, 0.0))
    options = ["-r", ".", "-x", "/none", "--ignore-nosec", "-q", "-f", "json", "--exit-zero"]
    argv = [sys.executable, "-I", "-m", "bandit", *options, "-o", str(place.out / "bandit.json")]
    done = await sandbox.run(argv, root=place.root, cwd=place.tree, config=config)
    if short := cut_short(done):
        return failed(NAME, release, short, expected=len(wanted), seconds=done.seconds)
    try:
        told: dict[str, Any] = json.loads(place.read("bandit.json", 100_000_000))
        errors = [f"{_path(error['filename'])}: {error['reason']}" for error in told["errors"]]
        scanned = {_path(name) for name in told["metrics"] if name != "_totals"}
        found = [_raw(result) for result in told["results"]]
    except (ValueError, KeyError, TypeError):
        return failed(NAME, release, unreadable(done), expected=len(wanted), seconds=done.seconds)
    ok = len(scanned & set(wanted)) - len(errors)
    run = ScannerRun(NAME, release, len(wanted), ok, done.seconds, _complaint(errors, ok, len(wanted)))
    crypto = _needs_pycrypto(place, texts)
    kept = [raw for raw in found if not _is_noise(raw, crypto=crypto)]
    return Outcome(run, tuple(kept))


def _complaint(errors: Sequence[str], scanned: int, expected: int) -> str | None:
    if errors:
        return f"{len(errors)} of {expected} files could not be scanned: {'; '.join(errors[:5])}"
    return None if scanned == expected else f"only {scanned} of {expected} files were scanned"


def _path(name: str) -> str:
    return name.removeprefix("./")


def _raw(result: dict[str, Any]) -> Raw:
    severity = _SEVERITY.get(str(result["issue_severity"]), Severity.MEDIUM)
    # These rules quote the password itself.
    said = "A password is written into the source" if result["test_id"] in PASSWORDS else result["issue_text"]
    text = f"{said} ({result['test_name']}, confidence {str(result['issue_confidence']).lower()})"
    return Raw(str(result["test_id"]), severity, _path(str(result["filename"])), int(result["line_number"]), text)


def _is_noise(raw: Raw, *, crypto: bool) -> bool:
    in_tests = raw.rule in _IN_TESTS and raw.path is not None and is_test(raw.path)
    return in_tests or (raw.rule in _PYCRYPTO_ONLY and not crypto)


def _needs_pycrypto(place: Scratch, texts: Sequence[str]) -> bool:
    """The successor pycryptodome shares pycrypto's import name; only the old one is a finding."""
    declared = [path for path in texts if path.endswith((".txt", ".toml", ".cfg")) or path.endswith("setup.py")]
    bodies = [(place.tree / path).read_text("utf-8", "replace").lower() for path in declared]
    return any("pycrypto" in body.replace("pycryptodome", "") for body in bodies)
