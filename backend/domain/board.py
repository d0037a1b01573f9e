"""The task board of a run: which changes are merged next and which tasks start; pure functions over plain JSON.

A card says more than the task's status: IN_PROGRESS may mean being worked on, sent back, approved or in conflict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Required, TypedDict

from backend.domain.plan import PlannedTask
from backend.domain.role import Role
from backend.domain.task import TaskKind, TaskStatus


class Stage(StrEnum):
    """Where the work on a task stands, within its status."""

    IDLE = "idle"
    WORKING = "working"
    SENT_BACK = "sent_back"
    APPROVED = "approved"
    CONFLICTED = "conflicted"
    ASKED = "asked"
    EXHAUSTED = "exhausted"
    AGAIN = "again"
    MERGED = "merged"


class TaskSpec(TypedDict):
    """What a task asks for; it never changes. `number` orders tasks, since stored dicts keep no order."""

    key: str
    number: int
    title: str
    description: str
    kind: str
    role: str
    criteria: list[str]
    depends_on: list[str]
    parent: str | None
    priority: int


class Card(TypedDict, total=False):
    """Where a task stands: work begins at `start`, the change is `commit`, and it is compared with `base`."""

    status: Required[str]
    stage: Required[str]
    base: str
    start: str
    commit: str
    rounds: int
    visit: int
    merge_order: int
    feedback: list[str]
    summary: str
    trouble: str
    question: str


def planned(task: PlannedTask, number: int) -> TaskSpec:
    """Return the spec of a task of the PM's plan."""
    return {
        "key": task.key,
        "number": number,
        "title": task.title,
        "description": task.description,
        "kind": task.kind,
        "role": str(Role.DEVELOPER),
        "criteria": list(task.acceptance_criteria),
        "depends_on": list(task.depends_on),
        "parent": task.parent,
        "priority": task.priority,
    }


def follow_up(
    key: str,
    number: int,
    *,
    title: str,
    kind: TaskKind,
    description: str,
    criteria: Sequence[str],
    parent: str | None = None,
) -> TaskSpec:
    """Return the spec of a task that the company made on the way; it goes before everything else."""
    return {
        "key": key,
        "number": number,
        "title": title[:200],
        "description": description,
        "kind": str(kind),
        "role": str(Role.DEVELOPER),
        "criteria": list(criteria),
        "depends_on": [],
        "parent": parent,
        "priority": 9,
    }


def new_card() -> Card:
    """Return the card of a task that nobody has begun."""
    return {"status": str(TaskStatus.CREATED), "stage": str(Stage.IDLE), "rounds": 0, "feedback": []}


def next_round(specs: Mapping[str, TaskSpec], prefix: str) -> int:
    """Return the number of the next round of tasks that a gate makes, whose keys are `<prefix>-<round>-<number>`.

    It counts over retries, which begin the gate's own count anew: a key names one task of a run for ever.
    """
    made = (key.split("-") for key in specs if key.startswith(f"{prefix}-"))
    return 1 + max((int(parts[1]) for parts in made), default=0)


def order(specs: Mapping[str, TaskSpec]) -> list[str]:
    """Return the keys, higher priority first, then by number."""
    return sorted(specs, key=lambda key: (-specs[key]["priority"], specs[key]["number"]))


def in_stage(board: Mapping[str, Card], *stages: Stage) -> list[str]:
    """Return the keys of the cards in any of the stages, sorted."""
    return sorted(key for key, card in board.items() if card["stage"] in stages)


def to_merge(specs: Mapping[str, TaskSpec], board: Mapping[str, Card]) -> list[str]:
    """Return the approved changes in the order in which they are merged: the lead's, then the board's."""
    approved = [key for key in order(specs) if board[key]["stage"] == Stage.APPROVED]
    return sorted(approved, key=lambda key: board[key].get("merge_order", 50))


def startable(specs: Mapping[str, TaskSpec], board: Mapping[str, Card], slots: int) -> list[str]:
    """Return at most `slots` tasks to work on now: those sent back, then those whose dependencies are done."""
    back = [key for key in order(specs) if board[key]["stage"] == Stage.SENT_BACK]
    fresh = [key for key in order(specs) if _is_free(specs[key], board)]
    return [*back, *fresh][:slots]


def ready(specs: Mapping[str, TaskSpec], board: Mapping[str, Card]) -> list[str]:
    """Return the tasks that are CREATED and whose dependencies are done."""
    return [key for key in order(specs) if board[key]["status"] == TaskStatus.CREATED and _is_free(specs[key], board)]


def is_finished(board: Mapping[str, Card]) -> bool:
    """Whether every task is done."""
    return all(card["status"] == TaskStatus.DONE for card in board.values())


def freed(specs: Mapping[str, TaskSpec], board: Mapping[str, Card]) -> list[str]:
    """Return the tasks whose conflict was resolved: every conflict task under them is done."""
    waiting = in_stage(board, Stage.CONFLICTED)
    return [key for key in waiting if all(_is_done(board, child) for child in _conflicts(specs, key))]


def _conflicts(specs: Mapping[str, TaskSpec], key: str) -> list[str]:
    return [spec["key"] for spec in specs.values() if spec["parent"] == key and spec["kind"] == TaskKind.CONFLICT]


def _is_done(board: Mapping[str, Card], key: str) -> bool:
    return board[key]["status"] == TaskStatus.DONE


def _is_free(spec: TaskSpec, board: Mapping[str, Card]) -> bool:
    return board[spec["key"]]["stage"] == Stage.IDLE and all(_is_done(board, other) for other in spec["depends_on"])
