"""What graphs carry along: two states of about 20 kB, and what each node of a benchmark writes into them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pydoc_data.topics import topics
from typing import Annotated, Any, TypedDict

from langgraph.channels import EphemeralValue

from backend.domain import effect

NODES = 7
BRIEF, PLAN, DESIGN, REPORT, CARD, NOTE = 5_000, 4_500, 4_500, 1_500, 250, 300
"""Characters of text in each channel; together about 20,000 at the end of a run."""
PART = 2_900
"""Characters that each node adds where every artifact has a dict channel of its own."""


def text(node: int, run: int, length: int) -> str:
    """Prose with code in it, as roles write it; made beforehand, so that the clock does not count it."""
    return made(node, run % 64, length)


@cache
def made(node: int, run: int, length: int) -> str:
    """A stretch of Python's own reference manual."""
    manual = "\n".join(topics[name] for name in sorted(topics))
    place = (node * 7919 + run * 104_729) % (len(manual) - length)
    return manual[place : place + length]


def merge(old: dict[str, Any] | None, new: dict[str, Any] | None) -> dict[str, Any]:
    """Join two dicts by key."""
    return {**(old or {}), **(new or {})}


class Team(TypedDict, total=False):
    """What graphs of agents carry along: texts that stay, a board, a latest report and a log that grows.

    The brief is there from the start, plan and design after the first two nodes; every node then adds a card and a
    note and replaces the report.
    """

    run: int
    brief: str
    plan: dict[str, Any]
    design: str
    board: Annotated[dict[str, Any], merge]
    notes: Annotated[list[str], operator.add]
    report: str
    effects: Annotated[list[effect.Effect], EphemeralValue(list, guard=False)]


class Parts(TypedDict, total=False):
    """The shape that suits LangGraph's saver best: one dict for each artifact, each written once, no plain texts."""

    run: int
    part_1: dict[str, Any]
    part_2: dict[str, Any]
    part_3: dict[str, Any]
    part_4: dict[str, Any]
    part_5: dict[str, Any]
    part_6: dict[str, Any]
    part_7: dict[str, Any]
    effects: Annotated[list[effect.Effect], EphemeralValue(list, guard=False)]


@dataclass(frozen=True)
class Shape:
    """A state: its type, what a run begins with, and what each node writes."""

    title: str
    state: type
    begin: Callable[[int], dict[str, Any]]
    update: Callable[[int, int], dict[str, Any]]


def team_update(node: int, run: int) -> dict[str, Any]:
    """What a node of a team writes."""
    card = {"title": f"Task {node}", "status": "DONE", "sha": "0" * 64, "why": text(node, run, CARD)}
    update: dict[str, Any] = {"board": {f"T{node}": card}, "notes": [text(node, run, NOTE)]}
    update["report"] = text(node, run, REPORT)
    if node == 1:
        update["plan"] = {"tasks": [{"key": f"T{n}", "text": text(n, run, PLAN // NODES)} for n in range(1, NODES + 1)]}
    if node == 2:  # noqa: PLR2004 - the second node designs
        update["design"] = text(node, run, DESIGN)
    return update


def parts_update(node: int, run: int) -> dict[str, Any]:
    """What a node writes where it has a channel of its own."""
    return {f"part_{node}": {"text": text(node, run, PART), "sha": "0" * 64, "files": ["a.py", "b.py"]}}


SHAPES = {
    "team": Shape(
        "20 kB of texts, a board and a log", Team, lambda run: {"run": run, "brief": text(0, run, BRIEF)}, team_update
    ),
    "parts": Shape("20 kB in one dict for each artifact", Parts, lambda run: {"run": run}, parts_update),
}
