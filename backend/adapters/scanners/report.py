"""Running every configured scanner or linter over one prepared copy and putting their words together, in one order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from backend.adapters.checks.scratch import Scratch
from backend.adapters.sandbox import Sandbox
from backend.adapters.scanners import bandit, dependencies, detect_secrets, secret_rules, semgrep
from backend.adapters.scanners.found import Outcome, Raw, fingerprinted, secrets_at
from backend.adapters.scanners.linters import Linters
from backend.adapters.scanners.prepared import prepare
from backend.domain.config import ChecksConfig, SandboxConfig
from backend.domain.ports import ScanReport
from backend.domain.secret import masked


async def scan(
    place: Scratch, checks: ChecksConfig, sandbox: Sandbox, config: SandboxConfig, *, online: bool
) -> ScanReport:
    """Run the configured scanners one after another; a copy that one of them changed would show in none."""
    texts = await asyncio.to_thread(prepare, place.tree)
    outcomes: list[Outcome] = []
    for name in dict.fromkeys(checks.scanners):
        if name == "bandit":
            outcomes.append(await bandit.scan(place, texts, sandbox, config))
        elif name == "detect-secrets":
            outcomes.append(await detect_secrets.scan(place, texts, sandbox, config))
        elif name == "secret-rules":
            outcomes.append(await asyncio.to_thread(secret_rules.scan, place.tree, texts))
        elif name == "dependencies":
            outcomes.append(await dependencies.scan(place, texts, online=online, seconds=config.seconds))
        else:
            outcomes.append(await semgrep.scan(place, texts, sandbox, config))
    return _together(outcomes, place)


async def lint(place: Scratch, checks: ChecksConfig, sandbox: Sandbox, config: SandboxConfig) -> ScanReport:
    """Run the configured linters."""
    linters = Linters(place, await asyncio.to_thread(prepare, place.tree), sandbox, config)
    known = {
        "hadolint": linters.hadolint,
        "yamllint": linters.yamllint,
        "actionlint": linters.actionlint,
        "compose": linters.compose,
    }
    return _together([done for name in dict.fromkeys(checks.linters) for done in await known[name]()], place)


def _together(outcomes: Sequence[Outcome], place: Scratch) -> ScanReport:
    secrets = frozenset(value for done in outcomes for value in secrets_at(_of_secrets(done), place.tree))
    found = [
        finding for done in outcomes for finding in fingerprinted(done.run.scanner, done.found, place.tree, secrets)
    ]
    found.sort(key=lambda finding: (-finding.severity.rank, finding.path or "", finding.line or 0, finding.fingerprint))
    runs = tuple(replace(done.run, failed=done.run.failed and masked(done.run.failed, secrets)) for done in outcomes)
    return ScanReport(tuple(found), runs, tuple(sorted(secrets)))


def _of_secrets(done: Outcome) -> list[Raw]:
    whole = done.run.scanner in {detect_secrets.NAME, secret_rules.NAME}
    return [raw for raw in done.found if whole or raw.rule in bandit.PASSWORDS]
