"""A run: one execution of a graph for a project, its statuses and what may be asked of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from backend.domain.config import RunConfig


class RunStatus(StrEnum):
    """Where a run stands."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    WAITING = "WAITING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    STOPPED_BUDGET = "STOPPED_BUDGET"
    STOPPED_SECURITY = "STOPPED_SECURITY"
    STOPPED_USER = "STOPPED_USER"


class Request(StrEnum):
    """What a person has asked of a run that is on its way."""

    NONE = "none"
    PAUSE = "pause"
    STOP = "stop"


ENDED = frozenset(
    {
        RunStatus.COMPLETED,
        RunStatus.FAILED,
        RunStatus.STOPPED_BUDGET,
        RunStatus.STOPPED_SECURITY,
        RunStatus.STOPPED_USER,
    }
)
"""The statuses in which a run does nothing more unless it is retried."""

ACTIVE = frozenset(RunStatus) - ENDED
"""At most one run of a project is in one of these."""

MOVES: dict[RunStatus, frozenset[RunStatus]] = {
    RunStatus.QUEUED: frozenset({RunStatus.RUNNING, RunStatus.STOPPED_USER}),
    RunStatus.RUNNING: ENDED | {RunStatus.PAUSED, RunStatus.WAITING},
    RunStatus.PAUSED: frozenset({RunStatus.QUEUED, RunStatus.STOPPED_USER}),
    RunStatus.WAITING: frozenset({RunStatus.QUEUED, RunStatus.STOPPED_USER}),
    RunStatus.COMPLETED: frozenset(),
    RunStatus.FAILED: frozenset({RunStatus.QUEUED}),
    RunStatus.STOPPED_BUDGET: frozenset({RunStatus.QUEUED}),
    RunStatus.STOPPED_SECURITY: frozenset({RunStatus.QUEUED}),
    RunStatus.STOPPED_USER: frozenset({RunStatus.QUEUED}),
}


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a node may know of its run; nothing here changes while the run lives."""

    run_id: UUID
    project_id: UUID
    tenant_id: UUID
    number: int
    project_name: str
    brief: str
    config: RunConfig
    created_at: datetime
    correlation_id: str
