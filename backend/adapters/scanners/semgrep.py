"""semgrep where it is installed; its rules come over the network, so without one it says that it cannot judge."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from typing import Any

from backend.adapters.checks.scratch import Scratch
from backend.adapters.sandbox import Sandbox
from backend.adapters.scanners.found import Outcome, Raw, cut_short, failed, unreadable
from backend.domain.config import SandboxConfig
from backend.domain.finding import Severity
from backend.domain.ports import ScannerRun

NAME = "semgrep"
_SEVERITY = {"INFO": Severity.LOW, "WARNING": Severity.MEDIUM, "ERROR": Severity.HIGH, "CRITICAL": Severity.CRITICAL}


async def scan(place: Scratch, texts: Sequence[str], sandbox: Sandbox, config: SandboxConfig) -> Outcome:
    """Run semgrep with its default rules."""
    if shutil.which(NAME) is None:
        return failed(NAME, "", "semgrep is not installed on this machine", expected=len(texts))
    if not config.network:
        return failed(NAME, "", "semgrep's rules need the network, which the sandbox has not", expected=len(texts))
    line = f"semgrep scan --config p/default --metrics off --disable-nosem --json -o {place.out / 'semgrep.json'} ."
    done = await sandbox.run(line, root=place.root, cwd=place.tree, config=config)
    if short := cut_short(done):
        return failed(NAME, "", short, expected=len(texts), seconds=done.seconds)
    try:
        told: dict[str, Any] = json.loads(place.read("semgrep.json", 100_000_000))
        found = [
            Raw(
                str(item["check_id"]),
                _SEVERITY.get(str(item["extra"]["severity"]), Severity.MEDIUM),
                str(item["path"]).removeprefix("./"),
                int(item["start"]["line"]),
                str(item["extra"]["message"]),
            )
            for item in told["results"]
        ]
        errors, scanned = told["errors"], len(told["paths"]["scanned"])
    except (ValueError, KeyError, TypeError):
        return failed(NAME, "", unreadable(done), expected=len(texts), seconds=done.seconds)
    why = f"{len(errors)} files could not be scanned" if errors else None
    return Outcome(ScannerRun(NAME, str(told.get("version", "")), scanned, scanned, done.seconds, why), tuple(found))
