"""The parts of a commit that write the rows of effects, each run's from what `go` says of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from backend.adapters.db.commit.statement import Statement, as_json
from backend.adapters.db.projection import Row, Rows, ending_event


@dataclass(frozen=True, eq=False)
class Insert:
    """Rows of one kind: the table that they go to, and its columns by name and type, as the rows name them."""

    table: str
    rows: Callable[[Rows], Collection[Row]]
    columns: str
    clash: str = "ON CONFLICT DO NOTHING"
    owned: str = "tenant_id, run_id"
    """Columns that say whose the rows are, and what they are called in `go`."""
    owners: str = "go.tenant_id, go.id"
    besides: str = ""
    """What the rows hold that is no column, for `owners`."""

    @property
    def changes(self) -> bool:
        """Whether a row may change one that is there: no statement may do that to the same one twice."""
        return "DO UPDATE" in self.clash

    @property
    def part(self) -> str:
        """The name of the common table expression."""
        return f"new_{self.table}"

    def text(self, records: str) -> str:
        """The statement that inserts the rows of all runs in `go`; `records` is a run's as an array in JSON."""
        names = [column.strip().rpartition(" ")[0] for column in self.columns.split(",")]
        owned, owners = (f"{part}, " if part else "" for part in (self.owned, self.owners))
        record = f"{self.columns}, {self.besides}" if self.besides else self.columns
        return (
            f"INSERT INTO {self.table} AS f ({owned}{', '.join(names)})"
            f" SELECT {owners}{', '.join(f'x.{name}' for name in names)}"
            f" FROM go, jsonb_to_recordset({records}) AS x({record}) {self.clash}"
        )


INSERTS = (
    Insert(
        "tasks",
        lambda rows: rows.tasks,
        "id uuid, key text, title text, description text, kind text, status text, assigned_role text, priority int,"
        " iteration int, acceptance_criteria jsonb, parent_task_id uuid, branch text, commit text",
    ),
    Insert(
        "task_dependencies",
        lambda rows: rows.dependencies,
        "task_id uuid, depends_on_task_id uuid",
        owned="",
        owners="",
    ),
    Insert(
        "task_comments",
        lambda rows: rows.comments,
        "id uuid, task_id uuid, author_role text, author_name text, comment_type text, body text, metrics jsonb,"
        " blockers jsonb, next_steps jsonb, rationale text, node text, visit int",
    ),
    Insert(
        "findings",
        lambda rows: rows.findings.values(),
        "id uuid, task_id uuid, source text, scanner text, rule text, severity text, path text, line int,"
        " message text, fingerprint text, status text",
        clash="ON CONFLICT (run_id, fingerprint) DO UPDATE SET severity = EXCLUDED.severity, path = EXCLUDED.path,"
        " line = EXCLUDED.line, message = EXCLUDED.message, task_id = coalesce(EXCLUDED.task_id, f.task_id),"
        " updated_at = clock_timestamp(), status = CASE WHEN f.status = 'false_positive' OR (f.status = 'waived'"
        " AND f.waived_until > clock_timestamp()) THEN f.status ELSE EXCLUDED.status END",
    ),
    Insert(
        "artifacts",
        lambda rows: rows.artifacts,
        "id uuid, task_id uuid, kind text, path text, media_type text, size bigint, sha256 text, commit text",
    ),
    Insert(
        "questions",
        # Nobody can answer a run that ends with this commit.
        lambda rows: [row | {"status": "WITHDRAWN" if rows.end else "OPEN"} for row in rows.questions],
        'id uuid, task_id uuid, key text, kind text, text text, asked_by text, options jsonb, "default" text,'
        " on_expiry text, status text",
        owned="tenant_id, run_id, due_at",
        owners="go.tenant_id, go.id, clock_timestamp() + make_interval(secs => x.due_seconds)",
        besides="due_seconds int",
    ),
)


def told_of(rows: Rows) -> list[tuple[str, Row]]:
    """The events that a commit tells, the end of the run last."""
    return rows.events if rows.end is None else [*rows.events, ending_event(rows.end)]


def events_of(records: str) -> str:
    """The table expression of a run's events `e(type, payload, k)`; `records` is what `told_records` made of them."""
    recordset = f"jsonb_to_recordset({records}) AS (type text, payload jsonb)"
    return f"ROWS FROM ({recordset}) WITH ORDINALITY AS e(type, payload, k)"


def told_records(told: Sequence[tuple[str, Row]]) -> list[Row]:
    """Events as records, in order."""
    return [{"type": event_type, "payload": payload} for event_type, payload in told]


def insert_rows(statement: Statement, rows: Rows) -> None:
    """Write what the rows of one run say."""
    for kind in INSERTS:
        if records := kind.rows(rows):
            statement.part(kind.part, kind.text(statement.arg(as_json(list(records)), "jsonb")))
    if rows.end is not None:
        for name, part in ending(rows.end["status"]).items():
            statement.part(name, part)


def move_tasks(statement: Statement, moves: list[Row]) -> str:
    """Move tasks of one run; returns the query of the events that only the database can tell."""
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


def close_findings(statement: Statement, rows: Rows) -> list[str]:
    """Close findings of one run; returns the queries of the events that only the database can tell."""
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


def ending(status: str) -> dict[str, str]:
    """What else is written when the runs in `go` end: nobody is asked any more, and their projects are free."""
    left = "COMPLETED" if status == "COMPLETED" else "FAILED"
    return {
        "withdrawn": "UPDATE questions q SET status = 'WITHDRAWN' FROM go WHERE q.run_id = go.id AND q.status = 'OPEN'",
        "closed_project": f"UPDATE projects p SET status = '{left}', active_run_id = NULL, version = p.version + 1,"
        " updated_at = clock_timestamp() FROM go WHERE p.id = go.project_id AND p.active_run_id = go.id",
    }


def worked(lease_seconds: str) -> str:
    """The working time since the last heartbeat, which set the lease's end: added when the lease is given back."""
    since = f"clock_timestamp() - r.lease_expires_at + make_interval(secs => {lease_seconds})"
    return f"spent_seconds = r.spent_seconds + greatest(0, coalesce(extract(epoch FROM {since}), 0))::numeric(14, 6)"


def ended(status: str, code: str, error: str, report: str) -> list[str]:
    """What an ending run sets; each argument is an expression."""
    return [
        f"status = {status}",
        f"stop_reason = {code}",
        f"error = {error}",
        f"final_report = {report}",
        "requested = 'none'",
        "ended_at = clock_timestamp()",
        "lease_owner = NULL",
        "lease_expires_at = NULL",
        "version = r.version + 1",
    ]
