"""A review's findings must point into the diff."""

import pytest
from pydantic import ValidationError

from backend.domain.finding import Severity
from backend.domain.ports import Diff, DiffFile
from backend.domain.review import Review, faults, within
from backend.domain.triage import Triage
from backend.domain.triage import faults as triage_faults

DIFF = Diff("…", (DiffFile("a.py", "modified", 2, 1, (10, 11)), DiffFile("gone.py", "deleted", 0, 9)))


def review(decision: str, *findings: dict[str, object]) -> Review:
    return Review.model_validate(
        {"decision": decision, "summary": "Read.", "findings": [{"message": "Wrong.", **entry} for entry in findings]}
    )


@pytest.mark.parametrize(
    ("finding", "refused"),
    [
        ({"path": "a.py", "line": 10}, False),
        ({"path": "a.py", "line": 14}, False),
        ({"path": "a.py", "line": 15}, True),
        ({"path": "a.py", "line": 6}, True),
        ({"path": "a.py"}, False),
        ({"path": "gone.py", "line": 3}, False),
        ({"path": "b.py"}, True),
    ],
)
def test_a_finding_off_the_diff_is_refused(finding: dict[str, object], refused: bool) -> None:
    assert bool(faults(review("changes", finding), DIFF)) is refused


def test_changes_need_a_finding() -> None:
    assert faults(review("changes"), DIFF)
    assert not faults(review("approve"), DIFF)


def test_what_is_off_the_diff_can_be_dropped() -> None:
    kept = within(review("changes", {"path": "a.py", "line": 10}, {"path": "b.py"}), DIFF)
    assert [finding.path for finding in kept.findings] == ["a.py"]


def test_severities_are_read_in_any_case() -> None:
    assert review("approve", {"path": "a.py", "severity": "high"}).findings[0].severity is Severity.HIGH
    with pytest.raises(ValidationError):
        review("approve", {"path": "a.py", "severity": "terrible"})


def test_a_triage_explains_what_blocks_and_invents_nothing() -> None:
    triage = Triage.model_validate(
        {"summary": "Read.", "findings": [{"fingerprint": "aaaa", "explanation": "x", "proposal": "y"}]}
    )
    assert triage_faults(triage, ["aaaa"], ["aaaa"]) == []
    assert triage_faults(triage, ["bbbb"], ["bbbb"]) == [
        "There is no finding aaaa.",
        "The finding bbbb is not explained.",
    ]
    assert not {"severity", "status", "waived"} & set(type(triage.findings[0]).model_fields)
