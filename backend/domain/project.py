"""A project: a name, a brief and the template that its runs follow."""

from __future__ import annotations

from enum import StrEnum


class ProjectStatus(StrEnum):
    """Where a project stands."""

    DRAFT = "DRAFT"
    READY = "READY"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    ARCHIVED = "ARCHIVED"


_RESTING = frozenset({ProjectStatus.DRAFT, ProjectStatus.READY, ProjectStatus.COMPLETED, ProjectStatus.FAILED})

MOVES: dict[ProjectStatus, frozenset[ProjectStatus]] = {
    ProjectStatus.DRAFT: frozenset({ProjectStatus.READY, ProjectStatus.ARCHIVED}),
    ProjectStatus.READY: frozenset({ProjectStatus.RUNNING, ProjectStatus.ARCHIVED}),
    ProjectStatus.RUNNING: frozenset({ProjectStatus.COMPLETED, ProjectStatus.FAILED}),
    # A finished project runs again (a retry, or a new run) or is edited back to READY.
    ProjectStatus.COMPLETED: frozenset({ProjectStatus.READY, ProjectStatus.RUNNING, ProjectStatus.ARCHIVED}),
    ProjectStatus.FAILED: frozenset({ProjectStatus.READY, ProjectStatus.RUNNING, ProjectStatus.ARCHIVED}),
    ProjectStatus.ARCHIVED: frozenset(),
}
