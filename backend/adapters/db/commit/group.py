"""The usual commit, of several runs in one statement: checkpoints that follow their runs' heads, with their rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from backend.adapters.db.commit.rows import INSERTS, Insert, ended, ending, events_of, told_of, told_records, worked
from backend.adapters.db.commit.statement import INSERT_CHECKPOINT, INSERT_EVENTS, CheckpointRow, Fence, as_json
from backend.adapters.db.projection import Row, Rows
from backend.domain.run import RunStatus


@dataclass(frozen=True, slots=True)
class Next:
    """A checkpoint that follows its run's head, with its rows."""

    row: CheckpointRow
    fence: Fence
    rows: Rows
    node: str | None
    kinds: frozenset[Insert]
    """The kinds of rows that it has."""
    told: int
    """How many events it tells."""
    records: str
    """Its events and rows in JSON, each kind under its name: made before its turn comes, when there is time."""

    @property
    def ending(self) -> str | None:
        """The status that the run ends with; commits of one statement share it."""
        return None if self.rows.end is None else str(self.rows.end["status"])

    @classmethod
    def of(cls, row: CheckpointRow, fence: Fence | None, rows: Rows, node: str | None) -> Next | None:
        """The commit as one that may share a statement; None where only the database knows how many events it tells."""
        if fence is None or row.namespace or rows.moves or rows.closings:
            return None
        told = told_of(rows)
        records: dict[str, Any] = {"told": told_records(told)}
        kinds = []
        for kind in INSERTS:
            if found := kind.rows(rows):
                records[kind.table] = list(found)
                kinds.append(kind)
        return cls(row, fence, rows, node, frozenset(kinds), len(told), as_json(records))


def save_next(batch: Sequence[Next], *, instance: str) -> tuple[str, list[Any]]:
    """Checkpoints of several runs with their rows: a statement that returns the places `n` it wrote, and its arguments.

    One update is fence, guard, totals and head of each. A run that has another owner or another head (its commit was
    sent before), or whose row is locked while others are written too, is left as it is, and its place, counted from 1,
    is missing in the answer: `save_checkpoint` then finds out which it is. All of the batch end alike, or not at all.
    """
    kinds = frozenset[Insert]().union(*(one.kinds for one in batch))
    columns = _GIVEN if batch[0].ending is None else _GIVEN_AT_THE_END
    if len(batch) == 1:
        args = [get(batch[0]) for _, get in columns.values()]
    else:
        args = [[get(one) for one in batch] for _, get in columns.values()]
    args.append(instance)
    return _text(kinds, batch[0].ending, several=len(batch) > 1), args


_Columns = dict[str, tuple[str, Callable[[Next], Any]]]
_GIVEN: _Columns = {
    "run_id": ("uuid", lambda one: one.fence.run_id),
    "epoch": ("bigint", lambda one: one.fence.epoch),
    "node": ("text", lambda one: one.node),
    "progress": ("smallint", lambda one: one.rows.progress),
    "told": ("bigint", lambda one: one.told),
    "records": ("jsonb", lambda one: one.records),
    "number": ("int", lambda one: one.row.number),
    "checkpoint_id": ("uuid", lambda one: one.row.checkpoint_id),
    "parent_id": ("uuid", lambda one: one.row.parent_id),
    "metadata": ("jsonb", lambda one: one.row.metadata),
    "state": ("text", lambda one: one.row.state),
    "held": ("text", lambda one: one.row.channel_values),
}

_OF_THE_CHECKPOINT = frozenset({"number", "metadata", "state", "held"})
"""What only the checkpoint's own row needs: large, and not to be carried around."""


def _end(one: Next) -> Row:
    assert one.rows.end is not None
    return one.rows.end


_GIVEN_AT_THE_END: _Columns = _GIVEN | {
    "code": ("text", lambda one: _end(one).get("code")),
    "error": ("text", lambda one: None if one.ending == RunStatus.COMPLETED else _end(one)["reason"]),
    "report": ("jsonb", lambda one: as_json(_end(one)["report"])),
    "ttl": ("double precision", lambda one: one.fence.lease_seconds),
}


@lru_cache(maxsize=256)
def _text(kinds: frozenset[Insert], end: str | None, *, several: bool) -> str:
    """The statement for rows of these kinds: the same text each time, which both sides know already."""
    columns = _GIVEN if end is None else _GIVEN_AT_THE_END
    array = "[]" if several else ""
    listed = ", ".join(f"${n}::{column_type}{array}" for n, (column_type, _) in enumerate(columns.values(), 1))
    given = f"SELECT * FROM unnest({listed}) WITH ORDINALITY" if several else f"SELECT {listed}, 1::bigint"
    instance = f"${len(columns) + 1}::text"
    parts = {f"given({', '.join(columns)}, n)": given}
    if several:
        # A run whose row somebody holds is left out: it waits by itself, and nobody waits with it.
        told = ", ".join(f"g.{name}" for name in (*columns, "n") if name not in _OF_THE_CHECKPOINT)
        parts["free"] = (
            f"SELECT {told} FROM given g JOIN project_runs r ON r.id = g.run_id FOR NO KEY UPDATE OF r SKIP LOCKED"
        )
    parts["go"] = (
        f"UPDATE project_runs r SET {', '.join(_changes(end))} FROM {'free' if several else 'given'} g"
        " WHERE r.id = g.run_id AND r.lease_epoch = g.epoch AND r.head_checkpoint_id IS NOT DISTINCT FROM g.parent_id"
        " RETURNING g.n, r.id, r.tenant_id, r.project_id, r.correlation_id, r.event_seq - g.told AS before, g.records"
    )
    parts["saved"] = (
        f"{INSERT_CHECKPOINT} SELECT go.id, '', g.number, g.checkpoint_id, g.parent_id, g.metadata, g.state, g.held"
        " FROM go JOIN given g ON g.n = go.n"
    )
    parts |= {kind.part: kind.text(f"go.records -> '{kind.table}'") for kind in INSERTS if kind in kinds}
    if end is not None:
        parts |= ending(end)
    events = events_of("go.records -> 'told'")
    parts["logged"] = (
        f"{INSERT_EVENTS} SELECT go.tenant_id, go.project_id, go.id, go.before + e.k, e.type, 'engine',"
        f" {instance}, go.correlation_id, e.payload FROM go, {events}"
    )
    return f"WITH {', '.join(f'{name} AS ({part})' for name, part in parts.items())} SELECT n FROM go"


def _changes(end: str | None) -> list[str]:
    changes = [
        "claims = 0",
        "updated_at = clock_timestamp()",
        "current_node = coalesce(g.node, r.current_node)",
        "head_checkpoint_id = g.checkpoint_id",
        "progress = coalesce(g.progress, r.progress)",
        "event_seq = r.event_seq + g.told",
    ]
    if end is not None:
        changes.extend((*ended(f"'{RunStatus(end)}'", "g.code", "g.error", "g.report"), worked("g.ttl")))
    return changes
