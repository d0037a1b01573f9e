"""The usual commit, of several runs in one statement: checkpoints that follow their runs' heads, with their rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
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

    def may_precede(self, other: Next) -> bool:
        """Whether one that follows this checkpoint may share its commit."""
        return self.ending is None and not any(kind.changes for kind in self.kinds & other.kinds)

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


def save_next(batch: Sequence[Sequence[Next]], *, instance: str) -> tuple[str, list[Any]]:
    """Checkpoints of several runs with their rows: a statement that returns the places `n` it wrote, and its arguments.

    Each of the batch is a run's: checkpoints of which each follows the one before. One update is fence, guard, totals
    and head of each run. One that has another owner or another head (its commit was sent before), or whose row is
    locked while others are written too, is left as it is, and its place, counted from 1, is missing in the answer:
    `save_checkpoint` then finds out which it is. All of the batch end alike, or not at all.
    """
    kinds = frozenset[Insert]().union(*(one.kinds for run in batch for one in run))
    ending = batch[0][-1].ending
    given = _GIVEN if ending is None else _GIVEN_AT_THE_END
    kept = [(n, after, one) for n, run in enumerate(batch, 1) for after, one in _in_order(run)]
    several = len(kept) > 1
    args: list[Any] = [[get(run) for run in batch] for _, get in given.values()]
    args += [[get(*one) for one in kept] for _, get in _KEPT.values()]
    if not several:
        args = [value for (value,) in args]
    return _text(kinds, ending, several=several), [*args, instance]


def _in_order(run: Sequence[Next]) -> Iterator[tuple[int, Next]]:
    """Each checkpoint with the number of events that the commit tells before its own."""
    after = 0
    for one in run:
        yield after, one
        after += one.told


def _last(values: Iterable[Any]) -> Any:
    """The last that is known."""
    return next((value for value in reversed([*values]) if value is not None), None)


_Run = Sequence[Next]
_GIVEN: dict[str, tuple[str, Callable[[_Run], Any]]] = {
    "run_id": ("uuid", lambda run: run[0].fence.run_id),
    "epoch": ("bigint", lambda run: run[0].fence.epoch),
    "node": ("text", lambda run: _last(one.node for one in run)),
    "progress": ("smallint", lambda run: _last(one.rows.progress for one in run)),
    "told": ("bigint", lambda run: sum(one.told for one in run)),
    "follows": ("uuid", lambda run: run[0].row.parent_id),
    "head": ("uuid", lambda run: run[-1].row.checkpoint_id),
}
"""What is said of each run."""


def _end(run: _Run) -> Row:
    end = run[-1].rows.end
    assert end is not None
    return end


_GIVEN_AT_THE_END = _GIVEN | {
    "code": ("text", lambda run: _end(run).get("code")),
    "error": ("text", lambda run: None if run[-1].ending == RunStatus.COMPLETED else _end(run)["reason"]),
    "report": ("jsonb", lambda run: as_json(_end(run)["report"])),
    "ttl": ("double precision", lambda run: run[-1].fence.lease_seconds),
}
_KEPT: dict[str, tuple[str, Callable[[int, int, Next], Any]]] = {
    "run": ("bigint", lambda n, after, one: n),
    "after": ("bigint", lambda n, after, one: after),
    "told": ("bigint", lambda n, after, one: one.told),
    "records": ("jsonb", lambda n, after, one: one.records),
    "number": ("int", lambda n, after, one: one.row.number),
    "checkpoint_id": ("uuid", lambda n, after, one: one.row.checkpoint_id),
    "parent_id": ("uuid", lambda n, after, one: one.row.parent_id),
    "metadata": ("jsonb", lambda n, after, one: one.row.metadata),
    "state": ("text", lambda n, after, one: one.row.state),
    "held": ("text", lambda n, after, one: one.row.channel_values),
}
"""What is said of each checkpoint: its run's place, and what it holds."""


@lru_cache(maxsize=256)
def _text(kinds: frozenset[Insert], end: str | None, *, several: bool) -> str:
    """The statement for rows of these kinds: the same text each time, which both sides know already."""
    given = {name: kind for name, (kind, _) in (_GIVEN if end is None else _GIVEN_AT_THE_END).items()}
    kept = {name: kind for name, (kind, _) in _KEPT.items()}
    places = count(1)
    parts = {
        f"given({', '.join(given)}, n)": _listed(given.values(), places, several=several, numbered=True),
        f"kept({', '.join(kept)})": _listed(kept.values(), places, several=several),
    }
    instance = f"${next(places)}::text"
    if several:
        # A run whose row somebody holds is left out: it waits by itself, and nobody waits with it.
        parts["free"] = (
            "SELECT g.* FROM given g JOIN project_runs r ON r.id = g.run_id FOR NO KEY UPDATE OF r SKIP LOCKED"
        )
    parts["fenced"] = (
        f"UPDATE project_runs r SET {', '.join(_changes(end))} FROM {'free' if several else 'given'} g"
        " WHERE r.id = g.run_id AND r.lease_epoch = g.epoch AND r.head_checkpoint_id IS NOT DISTINCT FROM g.follows"
        " RETURNING g.n, r.id, r.tenant_id, r.project_id, r.correlation_id, r.event_seq - g.told AS before"
    )
    parts["saved"] = (
        f"{INSERT_CHECKPOINT} SELECT f.id, '', k.number, k.checkpoint_id, k.parent_id, k.metadata, k.state, k.held,"
        " f.before + k.after + k.told FROM fenced f JOIN kept k ON k.run = f.n"
    )
    # In order, since rows are told apart by when they were made.
    parts["go"] = (
        "SELECT f.id, f.tenant_id, f.project_id, f.correlation_id, f.before + k.after AS before, k.records"
        f" FROM fenced f JOIN kept k ON k.run = f.n{' ORDER BY k.run, k.after' if several else ''}"
    )
    parts |= {kind.part: kind.text(f"go.records -> '{kind.table}'") for kind in INSERTS if kind in kinds}
    if end is not None:
        parts |= ending(end)
    events = events_of("go.records -> 'told'")
    parts["logged"] = (
        f"{INSERT_EVENTS} SELECT go.tenant_id, go.project_id, go.id, go.before + e.k, e.type, 'engine',"
        f" {instance}, go.correlation_id, e.payload FROM go, {events}"
    )
    return f"WITH {', '.join(f'{name} AS ({part})' for name, part in parts.items())} SELECT n FROM fenced"


def _listed(kinds: Iterable[str], places: Iterator[int], *, several: bool, numbered: bool = False) -> str:
    """The table of the next arguments: a row, or the rows that arrays hold."""
    listed = ", ".join(f"${next(places)}::{kind}{'[]' if several else ''}" for kind in kinds)
    if several:
        return f"SELECT * FROM unnest({listed}){' WITH ORDINALITY' if numbered else ''}"
    return f"SELECT {listed}{', 1::bigint' if numbered else ''}"


def _changes(end: str | None) -> list[str]:
    changes = [
        "claims = 0",
        "updated_at = clock_timestamp()",
        "current_node = coalesce(g.node, r.current_node)",
        "head_checkpoint_id = g.head",
        "progress = coalesce(g.progress, r.progress)",
        "event_seq = r.event_seq + g.told",
    ]
    if end is not None:
        changes.extend((*ended(f"'{RunStatus(end)}'", "g.code", "g.error", "g.report"), worked("g.ttl")))
    return changes
