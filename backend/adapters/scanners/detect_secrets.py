"""detect-secrets over every text file, driven file by file so that none is passed over in silence."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backend.adapters.checks.scratch import Scratch
from backend.adapters.sandbox import Sandbox
from backend.adapters.scanners.found import Outcome, Raw, cut_short, failed, installed, unreadable
from backend.adapters.scanners.prepared import is_test
from backend.domain.config import SandboxConfig
from backend.domain.finding import Severity
from backend.domain.ports import ScannerRun

NAME = "detect-secrets"
RUNNER = Path(__file__).with_name("detect_secrets_runner.py")
_GUESSES = {"Base64 High Entropy String", "Hex High Entropy String"}
_WORDS = {"Secret Keyword", "Basic Auth Credentials"}


async def scan(place: Scratch, texts: Sequence[str], sandbox: Sandbox, config: SandboxConfig) -> Outcome:
    """Run every plug-in of detect-secrets without verification over the network."""
    release = installed("detect-secrets")
    (place.control / "files.json").write_text(json.dumps(list(texts)))
    argv = [sys.executable, "-I", str(RUNNER), str(place.control / "files.json"), str(place.out / "secrets.json")]
    done = await sandbox.run(argv, root=place.root, cwd=place.tree, config=config, readonly=(RUNNER, place.control))
    if short := cut_short(done):
        return failed(NAME, release, short, expected=len(texts), seconds=done.seconds)
    try:
        told: dict[str, Any] = json.loads(place.read("secrets.json", 100_000_000))
        scanned, found = int(told["scanned"]), [_raw(item) for item in told["found"]]
    except (ValueError, KeyError, TypeError):
        return failed(NAME, release, unreadable(done), expected=len(texts), seconds=done.seconds)
    why_not = None if scanned == len(texts) else f"only {scanned} of {len(texts)} files were scanned"
    return Outcome(ScannerRun(NAME, release, len(texts), scanned, done.seconds, why_not), tuple(found))


def _raw(item: dict[str, Any]) -> Raw:
    kind, path = str(item["type"]), str(item["path"])
    return Raw(
        kind.lower().replace(" ", "-"), _severity(kind, path), path, int(item["line"]), f"Possible secret: {kind}."
    )


def _severity(kind: str, path: str) -> Severity:
    """A known kind of token is critical, a telling name is high, mere randomness is medium; samples in tests less."""
    if kind in _GUESSES:
        return Severity.LOW if is_test(path) else Severity.MEDIUM
    if kind in _WORDS:
        return Severity.LOW if is_test(path) else Severity.HIGH
    return Severity.CRITICAL
