"""Where a namespace's checkpoints stand: which row holds the value of each channel, and what comes next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from uuid import UUID

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import ChannelVersions, Checkpoint, CheckpointMetadata
from langgraph.checkpoint.serde.types import TASKS

from backend.adapters.db.checkpointer.codec import dumps, loads, plain_dumps
from backend.adapters.db.commit import CheckpointRow
from backend.errors import Invalid

_BRANCH = "branch:to:"


@dataclass(slots=True)
class Tail:
    """The last checkpoint of a namespace: its number, and the number of the row that holds each channel's value.

    While it is not stored yet, `held` has the values that no row holds.
    """

    thread: str
    namespace: str
    checkpoint_id: str | None
    number: int
    parent_id: str | None
    sources: dict[str, int]
    sends: Sequence[str] = ()
    stored: bool = True
    held: dict[str, Any] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None
    metadata: CheckpointMetadata | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any], checkpoint: Checkpoint | None = None) -> Tail:
        """The tail that a stored row is."""
        return cls(
            str(row["thread_id"]),
            row["namespace"],
            str(row["checkpoint_id"]),
            row["number"],
            str(row["parent_id"]) if row["parent_id"] else None,
            loads(row["state"])["sources"],
            _sends(checkpoint) if checkpoint else (),
        )

    def row(self) -> CheckpointRow:
        """The row to store; the tail was made by `follow`."""
        checkpoint = self.checkpoint
        assert checkpoint is not None
        state = {
            "v": checkpoint["v"],
            "ts": checkpoint["ts"],
            "versions": checkpoint["channel_versions"],
            "seen": checkpoint["versions_seen"],
            "sources": self.sources,
            "updated": checkpoint.get("updated_channels"),
        }
        return CheckpointRow(
            as_uuid(self.thread, "thread_id"),
            self.namespace,
            self.number,
            as_uuid(checkpoint["id"], "checkpoint_id"),
            as_uuid(self.parent_id, "checkpoint_id") if self.parent_id else None,
            dumps(dict(self.metadata or {}), where="The metadata"),
            plain_dumps(state, where="The checkpoint"),
            dumps(self.held, where="The state"),
        )


def follow(
    last: Tail,
    checkpoint: Checkpoint,
    new_versions: ChannelVersions,
    metadata: CheckpointMetadata,
    *,
    leave_out: str | None,
) -> Tail:
    """The tail after `checkpoint`: it holds what changed, and what its predecessor held without being stored."""
    number = last.number + 1 if last.stored else last.number
    values = checkpoint["channel_values"]
    sources: dict[str, int] = {}
    held: dict[str, Any] = {}
    for channel in checkpoint["channel_versions"]:
        if channel not in values or channel == leave_out:
            continue
        if channel in new_versions or channel not in last.sources or channel in last.held:
            sources[channel], held[channel] = number, values[channel]
        else:
            sources[channel] = last.sources[channel]
    return Tail(
        last.thread,
        last.namespace,
        checkpoint["id"],
        number,
        last.checkpoint_id if last.stored else last.parent_id,
        sources,
        _sends(checkpoint),
        stored=False,
        held=held,
        checkpoint=checkpoint,
        metadata=metadata,
    )


def place(config: RunnableConfig) -> tuple[str, str, str | None]:
    """Thread, namespace and checkpoint that a config names."""
    configurable = config["configurable"]
    return str(configurable["thread_id"]), configurable.get("checkpoint_ns", ""), configurable.get("checkpoint_id")


@lru_cache(maxsize=1024)
def as_uuid(value: str | None, what: str) -> UUID:
    """The id as a UUID; raises `Invalid` for any other text."""
    try:
        return UUID(value or "")
    except ValueError:
        raise Invalid(f"The {what} {value!r} is not a UUID; threads are runs.") from None


def _sends(checkpoint: Checkpoint) -> tuple[str, ...]:
    sends = checkpoint["channel_values"].get(TASKS)
    return tuple(send.node for send in sends) if sends else ()


def next_nodes(checkpoint: Checkpoint, new_versions: ChannelVersions) -> list[str]:
    """The nodes that the superstep after a new checkpoint runs, as far as edges and sends tell."""
    values = checkpoint["channel_values"]
    branches = [
        channel.removeprefix(_BRANCH) for channel in new_versions if channel.startswith(_BRANCH) and channel in values
    ]
    return branches + (list(_sends(checkpoint)) if TASKS in new_versions else [])


def node_name(task_path: str, sends: Sequence[str]) -> str:
    """The node of a task by its path: pulled ones are named there, pushed ones by their place among the sends."""
    kind, _, rest = task_path.partition(", ")
    if kind == "~__pregel_pull":
        return rest
    place_of_send = rest.partition(", ")[0]
    if place_of_send.isdigit() and int(place_of_send) < len(sends):
        return sends[int(place_of_send)]
    return task_path or "input"
