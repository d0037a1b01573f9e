"""The usual commit, of several runs in one statement: checkpoints that follow their runs' heads, with their rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from backend.adapters.db.commit.rows import ended, event_columns, insert_rows, told_of, worked
from backend.adapters.db.commit.statement import (
    INSERT_CHECKPOINT,
    INSERT_EVENTS,
    CheckpointRow,
    Fence,
    Statement,
    as_json,
)
from backend.adapters.db.projection import Row, Rows
from backend.domain.run import RunStatus


@dataclass(frozen=True, slots=True)
class Next:
    """A checkpoint that follows its run's head, with its rows."""

    row: CheckpointRow
    fence: Fence
    rows: Rows
    node: str | None

    @property
    def ending(self) -> str | None:
        """The status that the run ends with; commits of one statement share it."""
        return None if self.rows.end is None else str(self.rows.end["status"])

    @classmethod
    def of(cls, row: CheckpointRow, fence: Fence | None, rows: Rows, node: str | None) -> Next | None:
        """The commit as one that may share a statement; None where only the database knows how many events it tells."""
        if fence is None or row.namespace or rows.moves or rows.closings:
            return None
        return cls(row, fence, rows, node)


def save_next(batch: Sequence[Next], *, instance: str) -> Statement:
    """Checkpoints of several runs with their rows; one update is fence, guard, totals and head of each.

    A run that has another owner or another head (its commit was sent before), or whose row is locked while others are
    written too, is left as it is, and its place, counted from 1, is missing in `go`: `save_checkpoint` then finds out
    which it is. All of the batch end alike, or not at all.
    """
    statement = Statement()
    told = [told_of(one.rows) for one in batch]
    _given(statement, batch, told)
    source = "given"
    if len(batch) > 1:
        # A run whose row somebody holds is left out: it waits by itself, and nobody waits with it.
        source = "free"
        statement.part(
            "free",
            "SELECT g.* FROM given g JOIN project_runs r ON r.id = g.run_id FOR NO KEY UPDATE OF r SKIP LOCKED",
        )
    statement.part(
        "go",
        f"UPDATE project_runs r SET {', '.join(_next_changes(batch[0].ending))} FROM {source} g WHERE r.id = g.run_id"
        " AND r.lease_epoch = g.epoch AND r.head_checkpoint_id IS NOT DISTINCT FROM g.parent_id"
        " RETURNING g.n, r.id, r.tenant_id, r.project_id, r.correlation_id, r.event_seq - g.told AS before",
    )
    statement.part(
        "saved",
        f"{INSERT_CHECKPOINT} SELECT go.id, '', c.number, c.checkpoint_id, c.parent_id, c.metadata, c.state, c.held"
        f" FROM go, {statement.table(_checkpoints(batch))} AS c(number, checkpoint_id, parent_id, metadata, state,"
        " held, n) WHERE c.n = go.n",
    )
    insert_rows(statement, [one.rows for one in batch])
    events = [(n, k, *event) for n, listed in enumerate(told, 1) for k, event in enumerate(listed, 1)]
    if events:
        statement.part(
            "logged",
            f"{INSERT_EVENTS} SELECT go.tenant_id, go.project_id, go.id, go.before + e.k, e.type, 'engine',"
            f" {statement.arg(instance, 'text')}, go.correlation_id, e.payload"
            f" FROM go, {statement.table(event_columns(events))} AS e(of, k, type, payload, n) WHERE e.of = go.n",
        )
    return statement


def _given(statement: Statement, batch: Sequence[Next], told: Sequence[Sequence[tuple[str, Row]]]) -> None:
    columns: dict[str, tuple[list[Any], str]] = {
        "run_id": ([one.fence.run_id for one in batch], "uuid"),
        "epoch": ([one.fence.epoch for one in batch], "bigint"),
        "parent_id": ([one.row.parent_id for one in batch], "uuid"),
        "head": ([one.row.checkpoint_id for one in batch], "uuid"),
        "node": ([one.node for one in batch], "text"),
        "progress": ([one.rows.progress for one in batch], "smallint"),
        "told": ([len(listed) for listed in told], "bigint"),
    }
    ends = [one.rows.end for one in batch if one.rows.end is not None]
    if ends:
        columns["code"] = [end.get("code") for end in ends], "text"
        columns["error"] = [None if end["status"] == "COMPLETED" else end["reason"] for end in ends], "text"
        columns["report"] = [as_json(end["report"]) for end in ends], "jsonb"
        columns["ttl"] = [one.fence.lease_seconds for one in batch], "double precision"
    statement.part(f"given({', '.join(columns)}, n)", f"SELECT * FROM {statement.table(list(columns.values()))}")


def _next_changes(ending: str | None) -> list[str]:
    changes = [
        "claims = 0",
        "updated_at = clock_timestamp()",
        "current_node = coalesce(g.node, r.current_node)",
        "head_checkpoint_id = g.head",
        "progress = coalesce(g.progress, r.progress)",
        "event_seq = r.event_seq + g.told",
    ]
    if ending is not None:
        changes.extend((*ended(f"'{RunStatus(ending)}'", "g.code", "g.error", "g.report"), worked("g.ttl")))
    return changes


def _checkpoints(batch: Sequence[Next]) -> list[tuple[list[Any], str]]:
    rows = [one.row for one in batch]
    return [
        ([row.number for row in rows], "int"),
        ([row.checkpoint_id for row in rows], "uuid"),
        ([row.parent_id for row in rows], "uuid"),
        ([row.metadata for row in rows], "jsonb"),
        ([row.state for row in rows], "text"),
        ([row.channel_values for row in rows], "text"),
    ]
