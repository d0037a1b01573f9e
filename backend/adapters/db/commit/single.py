"""Any commit of one run: a checkpoint, the writes of one task, or rows alone."""

from __future__ import annotations

from uuid import UUID

from backend.adapters.db.commit.rows import (
    close_findings,
    ended,
    events_of,
    insert_rows,
    move_tasks,
    told_of,
    told_records,
    worked,
)
from backend.adapters.db.commit.statement import (
    INSERT_CHECKPOINT,
    INSERT_EVENTS,
    CheckpointRow,
    Fence,
    PendingWrites,
    Statement,
    as_json,
)
from backend.adapters.db.projection import Row, Rows


def save_checkpoint(
    row: CheckpointRow, fence: Fence | None, rows: Rows, *, node: str | None, instance: str
) -> Statement:
    """A finished superstep: its checkpoint, and the rows of the visits that are not committed yet."""
    statement = _fenced(fence)
    statement.part(
        "saved",
        f"{INSERT_CHECKPOINT} SELECT {_checkpoint_values(statement, row)}, NULL FROM fence"
        " ON CONFLICT DO NOTHING RETURNING 1",
    )
    statement.part("go", "SELECT * FROM fence WHERE EXISTS (SELECT FROM saved)")
    if fence is not None:
        head = row.checkpoint_id if row.namespace == "" else None
        _project(statement, rows, fence, node=node, head=head, instance=instance)
    return statement


def _checkpoint_values(statement: Statement, row: CheckpointRow) -> str:
    return ", ".join(
        (
            statement.arg(row.thread_id, "uuid"),
            statement.arg(row.namespace, "text"),
            statement.arg(row.number, "int"),
            statement.arg(row.checkpoint_id, "uuid"),
            statement.arg(row.parent_id, "uuid"),
            statement.arg(row.metadata, "jsonb"),
            statement.arg(row.state, "text"),
            statement.arg(row.channel_values, "text"),
        )
    )


def save_writes(
    writes: PendingWrites, fence: Fence | None, rows: Rows, *, node: str | None, instance: str
) -> Statement:
    """A finished task of an unfinished superstep: its writes and its rows."""
    statement = _fenced(fence)
    keys = ", ".join(
        (
            statement.arg(writes.thread_id, "uuid"),
            statement.arg(writes.namespace, "text"),
            statement.arg(writes.checkpoint_id, "uuid"),
            statement.arg(writes.task_id, "uuid"),
            statement.arg(writes.task_path, "text"),
        )
    )
    listed = ", ".join(
        (
            statement.arg(writes.idx, "int[]"),
            statement.arg(writes.channels, "text[]"),
            statement.arg(writes.values, "text[]"),
        )
    )
    clash = "DO UPDATE SET channel = EXCLUDED.channel, value = EXCLUDED.value" if writes.special else "DO NOTHING"
    statement.part(
        "saved",
        "INSERT INTO checkpoint_writes (thread_id, namespace, checkpoint_id, task_id, task_path, idx, channel, value)"
        f" SELECT {keys}, w.* FROM fence, unnest({listed}) AS w"
        f" ON CONFLICT (thread_id, namespace, checkpoint_id, task_id, idx) {clash} RETURNING 1",
    )
    statement.part("go", "SELECT * FROM fence WHERE EXISTS (SELECT FROM saved)")
    if fence is not None and not writes.special:
        _project(statement, rows, fence, node=node, head=None, instance=instance)
    return statement


def save_rows(fence: Fence, rows: Rows, *, instance: str, node: str | None = None) -> Statement:
    """Rows of a commit that has no checkpoint of its own: further rounds of moves, the end made by the executor."""
    statement = _fenced(fence)
    statement.part("go", "SELECT * FROM fence")
    _project(statement, rows, fence, node=node, head=None, instance=instance)
    return statement


def _fenced(fence: Fence | None) -> Statement:
    statement = Statement()
    if fence is None:
        statement.part("fence", "SELECT 1 AS id")
        return statement
    run, epoch = statement.arg(fence.run_id, "uuid"), statement.arg(fence.epoch, "bigint")
    statement.part(
        "fence",
        "SELECT id, tenant_id, project_id FROM project_runs"
        f" WHERE id = {run} AND lease_epoch = {epoch} FOR NO KEY UPDATE",
    )
    return statement


def _project(
    statement: Statement, rows: Rows, fence: Fence, *, node: str | None, head: UUID | None, instance: str
) -> None:
    sources: list[str] = []
    if told := told_of(rows):
        records = statement.arg(as_json(told_records(told)), "jsonb")
        sources = [f"SELECT e.k, e.type, e.payload FROM go, {events_of(records)}"]
    insert_rows(statement, rows)
    sources.extend(move_tasks(statement, moves) for moves in rows.moves[:1])
    sources.extend(close_findings(statement, rows))
    _log(statement, rows, sources, fence, node=node, head=head, instance=instance)


def _log(
    statement: Statement,
    rows: Rows,
    sources: list[str],
    fence: Fence,
    *,
    node: str | None,
    head: UUID | None,
    instance: str,
) -> None:
    changes = _changes(statement, rows, fence, node=node, head=head)
    if sources:
        statement.part("told(n, type, payload)", " UNION ALL ".join(sources))
        changes.append("event_seq = r.event_seq + (SELECT count(*) FROM told)")
    statement.part(
        "bumped",
        f"UPDATE project_runs r SET {', '.join(changes)} FROM go WHERE r.id = go.id"
        " RETURNING r.event_seq, r.correlation_id, r.tenant_id, r.project_id, r.id",
    )
    if sources:
        statement.part(
            "logged",
            f"{INSERT_EVENTS} SELECT b.tenant_id, b.project_id, b.id, b.event_seq - t.total + t.k, t.type, 'engine',"
            f" {statement.arg(instance, 'text')}, b.correlation_id, t.payload FROM bumped b, (SELECT type, payload,"
            " row_number() OVER (ORDER BY n) AS k, count(*) OVER () AS total FROM told) t",
        )


def _changes(statement: Statement, rows: Rows, fence: Fence, *, node: str | None, head: UUID | None) -> list[str]:
    """What a commit sets in the run's row `r`, but for the number of its last event."""
    changes = ["claims = 0", "updated_at = clock_timestamp()"]
    if node is not None:
        changes.append(f"current_node = {statement.arg(node, 'text')}")
    if head is not None:
        changes.append(f"head_checkpoint_id = {statement.arg(head, 'uuid')}")
    if rows.progress is not None:
        changes.append(f"progress = {statement.arg(rows.progress, 'smallint')}")
    if rows.end is not None:
        changes.extend(_end(statement, rows.end))
        changes.append(worked(statement.arg(fence.lease_seconds, "double precision")))
    return changes


def _end(statement: Statement, end: Row) -> list[str]:
    return ended(
        statement.arg(end["status"], "text"),
        statement.arg(end.get("code"), "text"),
        statement.arg(None if end["status"] == "COMPLETED" else end["reason"], "text"),
        statement.arg(as_json(end["report"]), "jsonb"),
    )
