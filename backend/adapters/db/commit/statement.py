"""One SQL statement in the making, and the shapes of what it stores."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import orjson

from backend.adapters.db.projection import Row

INSERT_CHECKPOINT = (
    "INSERT INTO checkpoints (thread_id, namespace, number, checkpoint_id, parent_id, metadata, state, channel_values,"
    " event_seq)"
)
INSERT_EVENTS = (
    "INSERT INTO events (tenant_id, project_id, run_id, seq, type, source, instance, correlation_id, payload)"
)


@dataclass(frozen=True, slots=True)
class Fence:
    """The right to write for a run: its lease's epoch, and how long a heartbeat extends it."""

    run_id: UUID
    epoch: int
    lease_seconds: float = 15.0


@dataclass(slots=True)
class CheckpointRow:
    """A checkpoint as it is stored."""

    thread_id: UUID
    namespace: str
    number: int
    checkpoint_id: UUID
    parent_id: UUID | None
    metadata: str
    state: str
    channel_values: str


@dataclass(slots=True)
class PendingWrites:
    """The writes of one task; `special` ones replace earlier ones of the same kind."""

    thread_id: UUID
    namespace: str
    checkpoint_id: UUID
    task_id: UUID
    task_path: str
    special: bool = False
    idx: list[int] = field(default_factory=list)
    channels: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)


def as_json(value: Any) -> str:
    """Return JSON text; what the fast writer refuses (integers beyond 64 bits), the standard one writes."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return json.dumps(value)


class Statement:
    """One SQL statement in the making: named parts in order, and their arguments."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.args: list[Any] = []

    def arg(self, value: Any, cast: str) -> str:
        """Add an argument; returns how the text names it."""
        self.args.append(value)
        return f"${len(self.args)}::{cast}"

    def records(self, rows: Iterable[Row], columns: str) -> str:
        """Add rows as one JSON argument; returns the table expression that reads them."""
        return f"jsonb_to_recordset({self.arg(as_json(list(rows)), 'jsonb')}) AS x({columns})"

    def part(self, name: str, text: str) -> None:
        """Add a common table expression."""
        self.parts.append(f"{name} AS ({text})")

    def text(self, final: str) -> str:
        """The whole statement."""
        return f"WITH {', '.join(self.parts)} {final}"
