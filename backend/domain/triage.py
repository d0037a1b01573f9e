"""What the security role replies about scanner findings; it explains and ranks, the gate alone decides."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

from pydantic import Field

from backend.domain.plan import Reply


class TriagedFinding(Reply):
    """One finding explained: what could happen, how to mend it, what to mend first."""

    fingerprint: Annotated[str, Field(min_length=4, max_length=64)]
    explanation: Annotated[str, Field(min_length=1, max_length=2_000)]
    proposal: Annotated[str, Field(min_length=1, max_length=2_000)]
    rank: Annotated[int, Field(ge=1, le=100)] = 50
    """1 is mended first."""


class Triage(Reply):
    """The security role's word on a scan. It has no field that could lower a severity or close a finding."""

    summary: Annotated[str, Field(min_length=1, max_length=3_000)]
    findings: Annotated[tuple[TriagedFinding, ...], Field(max_length=100)] = ()


def faults(triage: Triage, known: Collection[str], required: Collection[str]) -> list[str]:
    """Return what is wrong with a triage: findings that do not exist, and required ones that are not there."""
    named = {found.fingerprint for found in triage.findings}
    unknown = [f"There is no finding {name}." for name in sorted(named - set(known))]
    missing = [f"The finding {name} is not explained." for name in sorted(set(required) - named)]
    return unknown + missing
