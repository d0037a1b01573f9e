"""A finding: what a scanner, a test or a review found, with a fingerprint that survives line moves."""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum


class Severity(StrEnum):
    """The one scale to which every scanner's own is mapped, lowest first."""

    INFO = "INFO"
    LOW = "LOW"
    MEDIUM = "MEDIUM"
    HIGH = "HIGH"
    CRITICAL = "CRITICAL"

    @property
    def rank(self) -> int:
        """0 for INFO to 4 for CRITICAL."""
        return list(Severity).index(self)


class FindingStatus(StrEnum):
    """What became of a finding."""

    OPEN = "open"
    FIXED = "fixed"
    WAIVED = "waived"
    FALSE_POSITIVE = "false_positive"


class FindingSource(StrEnum):
    """Which gate reported it."""

    REVIEW = "review"
    QA = "qa"
    SECURITY = "security"
    DEVOPS = "devops"


def fingerprint(scanner: str, rule: str, path: str, snippet: str, occurrence: int = 0) -> str:
    """Return 32 hex digits that stay the same when lines move.

    `snippet` is the offending source line (white space is folded); `occurrence` counts equal lines in the file
    from 0, so that two equal lines are two findings.
    """
    text = "\0".join((scanner, rule, path, re.sub(r"\s+", " ", snippet).strip(), str(occurrence)))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
