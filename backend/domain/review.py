"""What the lead replies about a change, and the rule that a finding must point into the diff."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from backend.domain.finding import Severity
from backend.domain.plan import Reply
from backend.domain.ports import Diff

NEAR = 3
"""Lines around a touched line that still count as the diff: what unified diffs show as context."""


AnyCase = Annotated[Severity, BeforeValidator(lambda word: word.upper() if isinstance(word, str) else word)]


class ReviewFinding(Reply):
    """One thing the lead found in a change."""

    path: Annotated[str, Field(min_length=1, max_length=500)]
    line: Annotated[int, Field(ge=1)] | None = None
    severity: AnyCase = Severity.MEDIUM
    message: Annotated[str, Field(min_length=1, max_length=2_000)]


class Review(Reply):
    """The lead's word on a change."""

    decision: Literal["approve", "changes"]
    summary: Annotated[str, Field(min_length=1, max_length=4_000)]
    findings: Annotated[tuple[ReviewFinding, ...], Field(max_length=30)] = ()
    merge_order: Annotated[int, Field(ge=0, le=99)] = 50
    """Among changes approved at the same time, the lower merges first."""


def off_diff(finding: ReviewFinding, diff: Diff) -> str | None:
    """Return why a finding does not point into the diff, or None when it does."""
    file = next((file for file in diff.files if file.path == finding.path), None)
    if file is None:
        return f"{finding.path} is not in the diff."
    if finding.line is None or not file.lines:
        return None
    if any(abs(finding.line - line) <= NEAR for line in file.lines):
        return None
    return f"Line {finding.line} of {finding.path} was not touched by the change."


def faults(review: Review, diff: Diff) -> list[str]:
    """Return what is wrong with a review, a sentence each."""
    found = [why for finding in review.findings if (why := off_diff(finding, diff))]
    if review.decision == "changes" and not review.findings:
        found.append("Changes are asked for but no finding says which; name at least one.")
    return found


def within(review: Review, diff: Diff) -> Review:
    """Return the review without the findings that do not point into the diff."""
    return review.model_copy(update={"findings": _within(review.findings, diff)})


def _within(findings: Iterable[ReviewFinding], diff: Diff) -> tuple[ReviewFinding, ...]:
    return tuple(finding for finding in findings if off_diff(finding, diff) is None)
