"""A comment: one entry of the audit trail of a task, by a role or a person."""

from __future__ import annotations

from enum import StrEnum


class CommentType(StrEnum):
    """What a comment is for."""

    NOTE = "note"
    ANALYSIS = "analysis"
    PLAN = "plan"
    PROGRESS = "progress"
    REVIEW = "review"
    MERGE = "merge"
    TEST_REPORT = "test_report"
    SECURITY_REPORT = "security_report"
    GATE = "gate"
    QUESTION = "question"
    ANSWER = "answer"
    DOCS = "docs"
    DEVOPS = "devops"
    REPORT = "report"
