"""The commit of a node: fence, checkpoint or pending writes, rows, events and totals, in one statement.

Everything after the fence and the guard happens only if the fence held and the guard's row is new, so that a statement
that is sent twice, or by a worker that lost its run, changes nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import orjson

from backend.adapters.db.projection import Row, Rows, ending_event


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


def _json(value: Any) -> str:
    """JSON text; what the fast writer refuses (integers beyond 64 bits), the standard one writes."""
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

    def records(self, rows: list[Row], columns: str) -> str:
        """Add rows as one JSON argument; returns the table expression that reads them."""
        return f"jsonb_to_recordset({self.arg(_json(rows), 'jsonb')}) AS x({columns})"

    def part(self, name: str, text: str) -> None:
        """Add a common table expression."""
        self.parts.append(f"{name} AS ({text})")

    def text(self, final: str) -> str:
        """The whole statement."""
        return f"WITH {', '.join(self.parts)} {final}"


def save_next(row: CheckpointRow, fence: Fence, rows: Rows, *, node: str | None, instance: str) -> Statement | None:
    """A checkpoint that follows the run's head, with its rows; one update is fence, guard, totals and head in one.

    It changes nothing and returns no row when the run has another owner or another head (the commit was sent before):
    `save_checkpoint` then finds out which. None when the numbers of the events are known to the database only.
    """
    if row.namespace or rows.moves or rows.closings:
        return None
    statement = Statement()
    told = _told_of(rows)
    changes = _changes(statement, rows, fence, node=node, head=row.checkpoint_id)
    if told:
        changes.append(f"event_seq = r.event_seq + {statement.arg(len(told), 'bigint')}")
    statement.part(
        "go",
        f"UPDATE project_runs r SET {', '.join(changes)} WHERE r.id = {statement.arg(fence.run_id, 'uuid')}"
        f" AND r.lease_epoch = {statement.arg(fence.epoch, 'bigint')}"
        f" AND r.head_checkpoint_id IS NOT DISTINCT FROM {statement.arg(row.parent_id, 'uuid')}"
        " RETURNING r.id, r.tenant_id, r.project_id, r.correlation_id, r.event_seq",
    )
    statement.part("saved", f"{_INSERT_CHECKPOINT} SELECT {_checkpoint_values(statement, row)} FROM go")
    _insert_rows(statement, rows)
    if told:
        statement.part(
            "logged",
            f"{_INSERT_EVENTS} SELECT go.tenant_id, go.project_id, go.id, go.event_seq - {len(told)} + e.n, e.type,"
            f" 'engine', {statement.arg(instance, 'text')}, go.correlation_id, e.payload"
            f" FROM go, {_unnested(statement, told)}",
        )
    return statement


_INSERT_CHECKPOINT = (
    "INSERT INTO checkpoints (thread_id, namespace, number, checkpoint_id, parent_id, metadata, state, channel_values)"
)
_INSERT_EVENTS = (
    "INSERT INTO events (tenant_id, project_id, run_id, seq, type, source, instance, correlation_id, payload)"
)


def save_checkpoint(
    row: CheckpointRow, fence: Fence | None, rows: Rows, *, node: str | None, instance: str
) -> Statement:
    """A finished superstep: its checkpoint, and the rows of the visits that are not committed yet."""
    statement = _fenced(fence)
    statement.part(
        "saved",
        f"{_INSERT_CHECKPOINT} SELECT {_checkpoint_values(statement, row)} FROM fence"
        " ON CONFLICT DO NOTHING RETURNING 1",
    )
    statement.part("go", "SELECT fence.* FROM fence WHERE EXISTS (SELECT FROM saved)")
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
    statement.part("go", "SELECT fence.* FROM fence WHERE EXISTS (SELECT FROM saved)")
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
    told = _told_of(rows)
    sources = [f"SELECT e.n, e.type, e.payload FROM go, {_unnested(statement, told)}"] if told else []
    sources.extend(_insert_rows(statement, rows))
    _log(statement, rows, sources, fence, node=node, head=head, instance=instance)


def _insert_rows(statement: Statement, rows: Rows) -> list[str]:
    """Write what the rows say for the run in `go`; returns queries of the events that only the database can tell."""
    _insert_tasks(statement, rows)
    sources = [_move_tasks(statement, moves) for moves in rows.moves[:1]]
    _insert_comments(statement, rows)
    sources.extend(_change_findings(statement, rows))
    _insert_artifacts(statement, rows)
    _insert_questions(statement, rows)
    if rows.end is not None:
        statement.part("closed_project", _CLOSE_PROJECT[rows.end["status"] == "COMPLETED"])
    return sources


def _told_of(rows: Rows) -> list[tuple[str, Row]]:
    return rows.events if rows.end is None else [*rows.events, ending_event(rows.end)]


def _unnested(statement: Statement, told: list[tuple[str, Row]]) -> str:
    types = statement.arg([event_type for event_type, _ in told], "text[]")
    payloads = statement.arg([_json(payload) for _, payload in told], "jsonb[]")
    return f"unnest({types}, {payloads}) WITH ORDINALITY AS e(type, payload, n)"


def _insert_tasks(statement: Statement, rows: Rows) -> None:
    if rows.tasks:
        source = statement.records(
            rows.tasks,
            "id uuid, key text, title text, description text, task_kind text, status text, role text, priority int,"
            " iteration int, acceptance_criteria jsonb, parent_id uuid, branch text, commit text",
        )
        statement.part(
            "tasked",
            "INSERT INTO tasks (id, tenant_id, run_id, key, title, description, kind, status, assigned_role, priority,"
            " iteration, acceptance_criteria, parent_task_id, branch, commit)"
            " SELECT x.id, go.tenant_id, go.id, x.key, x.title, x.description, x.task_kind, x.status, x.role,"
            f" x.priority, x.iteration, x.acceptance_criteria, x.parent_id, x.branch, x.commit FROM go, {source}"
            " ON CONFLICT DO NOTHING",
        )
    if rows.dependencies:
        source = statement.records(rows.dependencies, "task_id uuid, depends_on uuid")
        statement.part(
            "depended",
            "INSERT INTO task_dependencies (task_id, depends_on_task_id)"
            f" SELECT x.task_id, x.depends_on FROM go, {source} ON CONFLICT DO NOTHING",
        )


def _move_tasks(statement: Statement, moves: list[Row]) -> str:
    source = statement.records(
        moves, 'id uuid, key text, "to" text, iteration int, branch text, commit text, reason text'
    )
    statement.part(
        "moved",
        'UPDATE tasks t SET status = x."to", iteration = coalesce(x.iteration, t.iteration),'
        " branch = coalesce(x.branch, t.branch), commit = coalesce(x.commit, t.commit), version = t.version + 1,"
        f" updated_at = clock_timestamp() FROM go, {source} WHERE t.id = x.id"
        " RETURNING t.id, t.key, old.status AS was, t.status AS now, t.iteration, x.reason",
    )
    return (
        "SELECT 1000000 + row_number() OVER (), 'task.moved', jsonb_build_object('task_id', m.id, 'key', m.key, 'from',"
        " m.was, 'to', m.now, 'iteration', m.iteration, 'reason', m.reason) FROM moved m WHERE m.was <> m.now"
    )


def _insert_comments(statement: Statement, rows: Rows) -> None:
    if not rows.comments:
        return
    source = statement.records(
        rows.comments,
        "id uuid, task_id uuid, author_role text, author_name text, comment_type text, body text, metrics jsonb,"
        " blockers jsonb, next_steps jsonb, rationale text, node text, visit int",
    )
    statement.part(
        "commented",
        "INSERT INTO task_comments (id, tenant_id, run_id, task_id, author_role, author_name, comment_type, body,"
        " metrics, blockers, next_steps, rationale, node, visit)"
        " SELECT x.id, go.tenant_id, go.id, x.task_id, x.author_role, x.author_name, x.comment_type, x.body, x.metrics,"
        f" x.blockers, x.next_steps, x.rationale, x.node, x.visit FROM go, {source} ON CONFLICT DO NOTHING",
    )


def _change_findings(statement: Statement, rows: Rows) -> list[str]:
    if rows.findings:
        source = statement.records(
            list(rows.findings.values()),
            "id uuid, task_id uuid, source text, scanner text, rule text, severity text, path text, line int,"
            " message text, fingerprint text, status text",
        )
        statement.part(
            "found",
            "INSERT INTO findings AS f (id, tenant_id, run_id, task_id, source, scanner, rule, severity, path, line,"
            " message, fingerprint, status) SELECT x.id, go.tenant_id, go.id, x.task_id, x.source, x.scanner, x.rule,"
            f" x.severity, x.path, x.line, x.message, x.fingerprint, x.status FROM go, {source}"
            " ON CONFLICT (run_id, fingerprint) DO UPDATE SET severity = EXCLUDED.severity, path = EXCLUDED.path,"
            " line = EXCLUDED.line, message = EXCLUDED.message, task_id = coalesce(EXCLUDED.task_id, f.task_id),"
            " updated_at = clock_timestamp(), status = CASE WHEN f.status = 'false_positive' OR (f.status = 'waived'"
            " AND f.waived_until > clock_timestamp()) THEN f.status ELSE EXCLUDED.status END",
        )
    if not rows.closings:
        return []
    source = statement.records(rows.closings, "source text, still_open jsonb")
    recorded = statement.arg(list(rows.findings), "text[]")
    statement.part(
        "closed",
        f"UPDATE findings f SET status = 'fixed', updated_at = clock_timestamp() FROM go, {source}"
        " WHERE f.run_id = go.id AND f.source = x.source AND f.status = 'open' AND NOT x.still_open ? f.fingerprint"
        f" AND f.fingerprint <> ALL ({recorded}) RETURNING f.source, f.fingerprint",
    )
    return [
        "SELECT 2000000, 'findings.closed', jsonb_build_object('source', c.source, 'fingerprints',"
        " jsonb_agg(c.fingerprint ORDER BY c.fingerprint)) FROM closed c GROUP BY c.source"
    ]


def _insert_artifacts(statement: Statement, rows: Rows) -> None:
    if not rows.artifacts:
        return
    source = statement.records(
        rows.artifacts,
        "id uuid, task_id uuid, artifact_kind text, path text, media_type text, size bigint, sha256 text, commit text",
    )
    statement.part(
        "made",
        "INSERT INTO artifacts (id, tenant_id, run_id, task_id, kind, path, media_type, size, sha256, commit)"
        " SELECT x.id, go.tenant_id, go.id, x.task_id, x.artifact_kind, x.path, x.media_type, x.size, x.sha256,"
        f" x.commit FROM go, {source} ON CONFLICT DO NOTHING",
    )


def _insert_questions(statement: Statement, rows: Rows) -> None:
    if not rows.questions:
        return
    source = statement.records(
        rows.questions,
        'id uuid, task_id uuid, key text, question_kind text, text text, asked_by text, options jsonb, "default" text,'
        " due_seconds int, on_expiry text",
    )
    statement.part(
        "asked",
        'INSERT INTO questions (id, tenant_id, run_id, task_id, key, kind, asked_by, text, options, "default",'
        " due_at, on_expiry) SELECT x.id, go.tenant_id, go.id, x.task_id, x.key, x.question_kind, x.asked_by, x.text,"
        ' x.options, x."default", clock_timestamp() + make_interval(secs => x.due_seconds), x.on_expiry'
        f" FROM go, {source} ON CONFLICT DO NOTHING",
    )


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
            f"{_INSERT_EVENTS} SELECT b.tenant_id, b.project_id, b.id, b.event_seq - t.total + t.k, t.type, 'engine',"
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
        changes.append(worked(statement, fence.lease_seconds))
    return changes


_CLOSE_PROJECT = {
    completed: f"UPDATE projects p SET status = '{status}', active_run_id = NULL, version = p.version + 1,"
    " updated_at = clock_timestamp() FROM go WHERE p.id = go.project_id AND p.active_run_id = go.id"
    for completed, status in ((True, "COMPLETED"), (False, "FAILED"))
}


def worked(statement: Statement, lease_seconds: float) -> str:
    """The working time since the last heartbeat, which set the lease's end: added when the lease is given back."""
    ttl = statement.arg(lease_seconds, "double precision")
    since = f"clock_timestamp() - r.lease_expires_at + make_interval(secs => {ttl})"
    return f"spent_seconds = r.spent_seconds + greatest(0, coalesce(extract(epoch FROM {since}), 0))::numeric(14, 6)"


def _end(statement: Statement, end: Row) -> list[str]:
    status = statement.arg(end["status"], "text")
    return [
        f"status = {status}",
        f"stop_reason = {statement.arg(end.get('code'), 'text')}",
        f"error = {statement.arg(None if end['status'] == 'COMPLETED' else end['reason'], 'text')}",
        f"final_report = {statement.arg(_json(end['report']), 'jsonb')}",
        "requested = 'none'",
        "ended_at = clock_timestamp()",
        "lease_owner = NULL",
        "lease_expires_at = NULL",
        "version = r.version + 1",
    ]
