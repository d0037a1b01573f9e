"""What the PM replies: the analysis of a brief and the plan of tasks, with the rules a plan must keep."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from backend.domain.task import find_cycle

MAX_TASKS = 40
"""More tasks than a lead can read in one plan are refused."""

RESERVED = ("bug-", "security-", "conflict-", "change-")
"""Beginnings of keys that the company gives to tasks it makes on the way."""

Line = Annotated[str, Field(min_length=1, max_length=500)]
Text = Annotated[str, Field(max_length=6_000)]
TaskKey = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9-]{0,39}$")]


class Reply(BaseModel):
    """The shape of every structured reply: frozen; keys that nobody asked for are dropped."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class OpenPoint(Reply):
    """Something that only the person who wrote the brief can decide."""

    question: Annotated[str, Field(min_length=5, max_length=1_000)]
    options: Annotated[tuple[Line, ...], Field(max_length=8)] = ()
    default: Annotated[str, Field(max_length=500)] | None = None
    """What the company will assume when nobody answers."""


class Analysis(Reply):
    """What the brief asks for, as the PM understands it."""

    summary: Annotated[str, Field(min_length=1, max_length=3_000)]
    requirements: Annotated[tuple[Line, ...], Field(min_length=1, max_length=60)]
    assumptions: Annotated[tuple[Line, ...], Field(max_length=40)] = ()
    risks: Annotated[tuple[Line, ...], Field(max_length=40)] = ()
    questions: Annotated[tuple[OpenPoint, ...], Field(max_length=5)] = ()


class PlannedTask(Reply):
    """One piece of work that a developer can finish and a lead can review alone."""

    key: TaskKey
    title: Annotated[str, Field(min_length=1, max_length=200)]
    description: Text = ""
    kind: Literal["feature", "bug", "test"] = "feature"
    acceptance_criteria: Annotated[tuple[Line, ...], Field(min_length=1, max_length=12)]
    depends_on: Annotated[tuple[TaskKey, ...], Field(max_length=MAX_TASKS)] = ()
    parent: TaskKey | None = None
    priority: Annotated[int, Field(ge=0, le=9)] = 0


class Plan(Reply):
    """The tasks of a run, a directed graph without cycles."""

    approach: Annotated[str, Field(min_length=1, max_length=4_000)]
    tasks: Annotated[tuple[PlannedTask, ...], Field(min_length=1, max_length=MAX_TASKS)]


def faults(plan: Plan) -> list[str]:
    """Return what is wrong with a plan beyond its shape, a sentence each; empty if it can be worked on."""
    keys = [task.key for task in plan.tasks]
    found = [f"The key {key} stands {keys.count(key)} times; give each task its own." for key in _repeated(keys)]
    for task in plan.tasks:
        found += _task_faults(task, keys)
    if not found and (cycle := find_cycle({task.key: task.depends_on for task in plan.tasks})):
        found.append(f"The dependencies run in a circle: {' -> '.join(cycle)}; remove one of them.")
    if not found and (cycle := find_cycle({task.key: [task.parent] if task.parent else [] for task in plan.tasks})):
        found.append(f"The parents run in a circle: {' -> '.join(cycle)}; a task cannot be its own ancestor.")
    return found


def in_order(plan: Plan) -> tuple[PlannedTask, ...]:
    """Return the tasks so that each comes after its parent and its dependencies, otherwise as planned."""
    placed: dict[str, PlannedTask] = {}
    waiting = list(plan.tasks)
    while waiting:
        # A parent may wait for its own children; then the planned order is as good as any.
        following = next((task for task in waiting if _before(task) <= placed.keys()), waiting[0])
        placed[following.key] = following
        waiting.remove(following)
    return tuple(placed.values())


def _before(task: PlannedTask) -> set[str]:
    return {*task.depends_on, *([task.parent] if task.parent else [])}


def _task_faults(task: PlannedTask, keys: Sequence[str]) -> list[str]:
    found = []
    if task.key.casefold().startswith(RESERVED):
        found.append(f"The key {task.key} begins like those the company gives itself; choose another.")
    for other in task.depends_on:
        if other not in keys:
            found.append(f"Task {task.key} depends on {other}, which is not in the plan.")
    if task.parent is not None and task.parent not in keys:
        found.append(f"Task {task.key} has the parent {task.parent}, which is not in the plan.")
    return found


def _repeated(keys: Iterable[str]) -> list[str]:
    seen: dict[str, int] = {}
    for key in keys:
        seen[key] = seen.get(key, 0) + 1
    return [key for key, times in seen.items() if times > 1]


def criterion_id(key: str, number: int) -> str:
    """Return how tests and reports name the `number`-th (from 1) acceptance criterion of a task."""
    return f"{key}#{number}"


def criteria_named(text: str) -> frozenset[str]:
    """Return the criteria that a test file says it proves, written as `criterion: key#1, key#2`."""
    named: set[str] = set()
    for match in re.finditer(r"(?i)\bcriteri(?:on|a):\s*((?:[A-Za-z][A-Za-z0-9-]*#\d+[,\s]*)+)", text):
        named.update(re.findall(r"[A-Za-z][A-Za-z0-9-]*#\d+", match.group(1)))
    return frozenset(named)
