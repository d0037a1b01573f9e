"""A task: a piece of work with acceptance criteria, a role and what it waits for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum


class TaskStatus(StrEnum):
    """Where a task stands."""

    CREATED = "CREATED"
    READY = "READY"
    BLOCKED = "BLOCKED"
    IN_PROGRESS = "IN_PROGRESS"
    DONE = "DONE"
    FAILED = "FAILED"


class TaskKind(StrEnum):
    """Why a task exists."""

    FEATURE = "feature"
    BUG = "bug"
    SECURITY = "security"
    CONFLICT = "conflict"
    TEST = "test"
    DOCS = "docs"
    DEVOPS = "devops"


MOVES: dict[TaskStatus, frozenset[TaskStatus]] = {
    TaskStatus.CREATED: frozenset({TaskStatus.READY, TaskStatus.BLOCKED, TaskStatus.FAILED}),
    TaskStatus.READY: frozenset({TaskStatus.IN_PROGRESS, TaskStatus.BLOCKED, TaskStatus.FAILED}),
    TaskStatus.BLOCKED: frozenset({TaskStatus.READY, TaskStatus.FAILED}),
    TaskStatus.IN_PROGRESS: frozenset({TaskStatus.DONE, TaskStatus.FAILED, TaskStatus.BLOCKED}),
    TaskStatus.DONE: frozenset(),
    TaskStatus.FAILED: frozenset(),
}


def find_cycle(dependencies: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the keys of one dependency cycle in order, first key repeated at the end; empty if there is none."""
    done: set[str] = set()
    for start in dependencies:
        path: list[str] = []
        on_path: set[str] = set()
        stack: list[tuple[str, bool]] = [(start, True)]
        while stack:
            key, entering = stack.pop()
            if not entering:
                on_path.discard(path.pop())
                done.add(key)
                continue
            if key in on_path:
                return [*path[path.index(key) :], key]
            if key in done:
                continue
            path.append(key)
            on_path.add(key)
            stack.append((key, False))
            stack.extend((dep, True) for dep in dependencies.get(key, ()))
    return []
