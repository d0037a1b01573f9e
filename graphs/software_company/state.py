"""The state of a run: plain JSON, one small dict channel for each thing, commits instead of files.

Stored dicts keep no order, so nothing here may depend on the order of keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypedDict, TypeVar

from langgraph.channels import EphemeralValue

from backend.domain.board import Card, TaskSpec
from backend.domain.effect import Effect

Value = TypeVar("Value")


def merge(old: Mapping[str, Value] | None, new: Mapping[str, Value | None] | None) -> dict[str, Value]:
    """Join two dicts by key; a None takes the key out."""
    joined = {**(old or {}), **(new or {})}
    return {key: value for key, value in joined.items() if value is not None}


def merge_cards(old: Mapping[str, Card] | None, new: Mapping[str, Card] | None) -> dict[str, Card]:
    """Join two boards card by card and field by field, so that parallel nodes write only their own cards."""
    joined: dict[str, Any] = dict(old or {})
    for key, card in (new or {}).items():
        joined[key] = {**joined.get(key, {}), **card}
    return joined


class Qa(TypedDict, total=False):
    """What QA knows from its visits: `failures` are texts, `summaries` what developers said about their bug fixes."""

    rounds: int
    covered: list[str]
    failures: list[str]
    passed: int
    failed: int
    coverage: float | None
    untested: list[str]


class Safety(TypedDict, total=False):
    """What the security scan knows from its visits."""

    rounds: int
    findings: int
    blocking: int


class Job(TypedDict, total=False):
    """What one parallel visit of `dev_work` and its `lead_review` work on."""

    task: TaskSpec
    visit: int
    base: str
    start: str
    commit: str
    rounds: int
    approach: str
    feedback: list[str]
    summary: str
    conflict: list[str]
    accepted_tests: list[str]
    trouble: str
    asked: bool


class JobInput(TypedDict):
    """The input that `Send` hands to `dev_work` and `lead_review`."""

    job: Job


class CompanyState(TypedDict, total=False):
    """The channels of the graph."""

    visits: Annotated[dict[str, int], merge]
    analysis: dict[str, Any]
    plan: dict[str, Any]
    plan_change: str
    specs: Annotated[dict[str, TaskSpec], merge]
    board: Annotated[dict[str, Card], merge_cards]
    base: str
    head: str
    gates: Annotated[dict[str, dict[str, str]], merge]
    review_findings: Annotated[dict[str, list[str]], merge]
    accepted_tests: Annotated[dict[str, str], merge]
    qa: Qa
    safety: Safety
    prepared: Annotated[dict[str, str], merge]
    ending: dict[str, Any]
    effects: Annotated[list[Effect], EphemeralValue(list, guard=False)]


Update = dict[str, Any]
"""A partial `CompanyState`."""
