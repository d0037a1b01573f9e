"""What the API is built on, handed in by the composition root: it makes none of it and imports no broker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

from backend.adapters.db.engine import Sessions
from backend.domain.config import RunConfig
from backend.domain.ports import Bell
from backend.engine.health import Check
from backend.errors import Fault


class Followers(Protocol):
    """Wake-ups of those who follow runs: each item says that there may be new events; losing one costs a delay."""

    def subscribe(self, run_id: UUID | None) -> AsyncIterator[object]:
        """Wake-ups of one run (None: of any) until the iterator is closed."""
        ...

    def words(self, run_id: UUID) -> AsyncIterator[bytes]:
        """What the models of a run say from now on, as JSON, until the iterator is closed; who is slow misses some."""
        ...


@dataclass(frozen=True)
class Installation:
    """Everything an endpoint may reach.

    `graph_version` names the version of a graph that new runs follow, `graph_shape` its nodes and edges, `faults` what
    of a configuration cannot work here, `health` all parts and how they are, `readiness` those without which the API
    cannot answer, `workers` the figures of living workers by name.
    """

    home: Path
    sessions: Sessions
    bell: Bell
    followers: Followers
    graph_version: Callable[[str], str]
    graph_shape: Callable[[str, str], dict[str, Any]]
    faults: Callable[[RunConfig, str], Sequence[Fault]]
    health: Callable[[], Awaitable[Sequence[Check]]]
    readiness: Callable[[], Awaitable[Sequence[Check]]]
    workers: Callable[[], Awaitable[dict[str, str]]]
    background: Sequence[Callable[[], Awaitable[None]]] = field(default=())
    """Loops that run while the API does, such as the reaper."""
