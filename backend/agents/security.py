"""The security engineer: explains and ranks what scanners found; it can neither close nor lower anything."""

from __future__ import annotations

from collections.abc import Sequence

from backend.agents.desk import Desk
from backend.agents.reply import Form, structured
from backend.domain import triage as triages
from backend.domain.ports import ScanFinding
from backend.domain.triage import Triage

LOOKS = 4
SHOWN = 60
"""Findings of each kind that a prompt shows, worst first."""


async def triage(desk: Desk, *, blocking: Sequence[ScanFinding], others: Sequence[ScanFinding]) -> Triage:
    """Explain the findings; every blocking one that was shown must be explained."""
    shown, rest = worst_first(blocking)[:SHOWN], worst_first(others)[:SHOWN]
    begin = desk.prompts.opening(
        "security",
        blocking=listed(shown),
        others=listed(rest) or "none",
    )
    required = [found.fingerprint for found in shown]
    known = required + [found.fingerprint for found in rest]
    form = Form(
        "triage", "the findings explained.", Triage, faults=lambda found: triages.faults(found, known, required)
    )
    return await structured(desk, begin, form, looks=LOOKS)


def worst_first(findings: Sequence[ScanFinding]) -> list[ScanFinding]:
    """Return the findings by severity, then path, line and rule."""
    return sorted(
        findings, key=lambda found: (-found.severity.rank, found.path or "", found.line or 0, found.rule, found.scanner)
    )


def listed(findings: Sequence[ScanFinding]) -> str:
    """Return the findings as text, a line each."""
    return "\n".join(
        f"{found.fingerprint} {found.severity} {found.path or '(no file)'}:{found.line or '-'} "
        f"[{found.scanner} {found.rule}] {found.message}"
        for found in findings
    )
