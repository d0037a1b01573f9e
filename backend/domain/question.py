"""A question: what a run asks people, answered once."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class QuestionKind(StrEnum):
    """Why people are asked."""

    CLARIFICATION = "clarification"
    APPROVAL = "approval"
    BUDGET = "budget"


class QuestionStatus(StrEnum):
    """Where a question stands."""

    OPEN = "OPEN"
    ANSWERED = "ANSWERED"
    EXPIRED = "EXPIRED"
    WITHDRAWN = "WITHDRAWN"


class ExpiryAction(StrEnum):
    """What happens when nobody answers in time."""

    DEFAULT = "default"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered to a question, by whom; `by` is `expiry` when the default was taken."""

    key: str
    text: str
    by: str


def interrupt_key(identity: str) -> str:
    """The key of the question that stands for an interrupt of LangGraph's."""
    return f"interrupt/{identity}"
