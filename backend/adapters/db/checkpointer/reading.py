"""Reads checkpoints back: the row of a checkpoint, the rows that hold its channels' values, and its pending writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from langgraph.checkpoint.base import CheckpointTuple

from backend.adapters.db.checkpointer.codec import loads

_COLUMNS = (
    "c.thread_id, c.namespace, c.number, c.checkpoint_id, c.parent_id, c.metadata, c.state, c.channel_values,"
    " ARRAY(SELECT (w.task_id, w.channel, w.value) FROM checkpoint_writes w WHERE w.thread_id = c.thread_id"
    " AND w.namespace = c.namespace AND w.checkpoint_id = c.checkpoint_id"
    ' ORDER BY w.task_path COLLATE "C", w.task_id::text COLLATE "C", w.idx) AS writes'
)
"""A checkpoint's row and its pending writes."""

LATEST = (
    f"SELECT {_COLUMNS} FROM checkpoints c LEFT JOIN project_runs r ON r.id = c.thread_id AND c.namespace = ''"
    " WHERE c.thread_id = $1 AND c.namespace = $2"
    " AND (r.head_checkpoint_id IS NULL OR c.checkpoint_id = r.head_checkpoint_id)"
    " ORDER BY c.number DESC LIMIT 1"
)
BY_ID = f"SELECT {_COLUMNS} FROM checkpoints c WHERE c.thread_id = $1 AND c.namespace = $2 AND c.checkpoint_id = $3"
ID_OF = "SELECT checkpoint_id FROM checkpoints WHERE thread_id = $1 AND namespace = $2 AND number = $3"
LAST_NUMBER = "SELECT coalesce(max(number), 0) AS number FROM checkpoints WHERE thread_id = $1 AND namespace = $2"
LISTED = f"SELECT {_COLUMNS} FROM checkpoints c"
_VALUES = "SELECT number, channel_values FROM checkpoints WHERE thread_id = $1 AND namespace = $2 AND number = ANY ($3)"


def search(config: Any, metadata: Mapping[str, Any] | None, before: Any, limit: int | None) -> tuple[str, list[Any]]:
    """The statement that lists checkpoints newest first, and its arguments."""
    args: list[Any] = []
    conditions = ["true"]

    def add(condition: str, value: Any) -> None:
        args.append(value)
        conditions.append(condition.format(f"${len(args)}"))

    named = config["configurable"] if config else {}
    if "thread_id" in named:
        add("c.thread_id = {}::uuid", UUID(str(named["thread_id"])))
    if "checkpoint_ns" in named:
        add("c.namespace = {}", named["checkpoint_ns"])
    if named.get("checkpoint_id"):
        add("c.checkpoint_id = {}::uuid", UUID(named["checkpoint_id"]))
    if metadata:
        add("c.metadata @> {}::jsonb", json.dumps(metadata))
    if before:
        limit_id = UUID(before["configurable"]["checkpoint_id"])
        add(
            "c.number < (SELECT b.number FROM checkpoints b WHERE b.checkpoint_id = {}::uuid"
            " AND b.thread_id = c.thread_id AND b.namespace = c.namespace)",
            limit_id,
        )
    text = f"{LISTED} WHERE {' AND '.join(conditions)} ORDER BY c.created_at DESC, c.number DESC"
    if limit is not None:
        args.append(limit)
        text += f" LIMIT ${len(args)}"
    return text, args


def config_of(thread_id: UUID | str, namespace: str, checkpoint_id: UUID | str) -> Any:
    """The LangGraph config that names a checkpoint."""
    configurable = {"thread_id": str(thread_id), "checkpoint_ns": namespace, "checkpoint_id": str(checkpoint_id)}
    return {"configurable": configurable}


async def values_of(connection: Any, row: Mapping[str, Any], sources: Mapping[str, int]) -> dict[str, Any]:
    """The values of all channels of a checkpoint, each from the row that holds it."""
    held = {row["number"]: loads(row["channel_values"])}
    wanted = sorted(set(sources.values()) - set(held))
    if wanted:
        for found in await connection.fetch(_VALUES, row["thread_id"], row["namespace"], wanted):
            held[found["number"]] = loads(found["channel_values"])
    return {channel: held[number][channel] for channel, number in sources.items()}


async def load(connection: Any, row: Mapping[str, Any]) -> CheckpointTuple:
    """The checkpoint of a row with its values and pending writes."""
    state = loads(row["state"])
    sources: dict[str, int] = state["sources"]
    checkpoint: Any = {
        "v": state["v"],
        "id": str(row["checkpoint_id"]),
        "ts": state["ts"],
        "channel_values": await values_of(connection, row, sources),
        "channel_versions": state["versions"],
        "versions_seen": state["seen"],
        "updated_channels": state["updated"],
    }
    parent = row["parent_id"]
    return CheckpointTuple(
        config=config_of(row["thread_id"], row["namespace"], row["checkpoint_id"]),
        checkpoint=checkpoint,
        metadata=json.loads(row["metadata"]),
        parent_config=config_of(row["thread_id"], row["namespace"], parent) if parent else None,
        pending_writes=[(str(task), channel, loads(value)) for task, channel, value in row["writes"]],
    )
