"""The parts of a commit that write the rows of effects, for each run in `go` by its place `n` in the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from backend.adapters.db.commit.statement import Statement, as_json
from backend.adapters.db.projection import Row, Rows, ending_event


def told_of(rows: Rows) -> list[tuple[str, Row]]:
    """The events that a commit tells, the end of the run last."""
    return rows.events if rows.end is None else [*rows.events, ending_event(rows.end)]


def event_columns(events: Sequence[tuple[int, int, str, Row]]) -> list[tuple[list[Any], str]]:
    """Place in the batch, place in its run, type and payload of each event, as columns."""
    return [
        ([event[0] for event in events], "bigint"),
        ([event[1] for event in events], "bigint"),
        ([event[2] for event in events], "text"),
        ([as_json(event[3]) for event in events], "jsonb"),
    ]


def insert_rows(statement: Statement, batch: Sequence[Rows]) -> None:
    """Write what the rows say for the runs in `go`, each by its place in the batch."""
    _insert_tasks(statement, batch)
    _insert_comments(statement, batch)
    _insert_findings(statement, batch)
    _insert_artifacts(statement, batch)
    _insert_questions(statement, batch)
    ends = [rows.end for rows in batch if rows.end is not None]
    if ends:
        statement.part("withdrawn", _WITHDRAW)
        statement.part("closed_project", _CLOSE_PROJECT[ends[0]["status"] == "COMPLETED"])


def _numbered(batch: Sequence[Rows], listed: Callable[[Rows], Iterable[Row]]) -> list[Row]:
    return [row | {"n": n} for n, rows in enumerate(batch, 1) for row in listed(rows)]


def _insert_tasks(statement: Statement, batch: Sequence[Rows]) -> None:
    if tasks := _numbered(batch, lambda rows: rows.tasks):
        source = statement.records(
            tasks,
            "n int, id uuid, key text, title text, description text, task_kind text, status text, role text,"
            " priority int, iteration int, acceptance_criteria jsonb, parent_id uuid, branch text, commit text",
        )
        statement.part(
            "tasked",
            "INSERT INTO tasks (id, tenant_id, run_id, key, title, description, kind, status, assigned_role, priority,"
            " iteration, acceptance_criteria, parent_task_id, branch, commit)"
            " SELECT x.id, go.tenant_id, go.id, x.key, x.title, x.description, x.task_kind, x.status, x.role,"
            f" x.priority, x.iteration, x.acceptance_criteria, x.parent_id, x.branch, x.commit FROM go, {source}"
            " WHERE x.n = go.n ON CONFLICT DO NOTHING",
        )
    if dependencies := _numbered(batch, lambda rows: rows.dependencies):
        source = statement.records(dependencies, "n int, task_id uuid, depends_on uuid")
        statement.part(
            "depended",
            "INSERT INTO task_dependencies (task_id, depends_on_task_id)"
            f" SELECT x.task_id, x.depends_on FROM go, {source} WHERE x.n = go.n ON CONFLICT DO NOTHING",
        )


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


def _insert_comments(statement: Statement, batch: Sequence[Rows]) -> None:
    comments = _numbered(batch, lambda rows: rows.comments)
    if not comments:
        return
    source = statement.records(
        comments,
        "n int, id uuid, task_id uuid, author_role text, author_name text, comment_type text, body text, metrics jsonb,"
        " blockers jsonb, next_steps jsonb, rationale text, node text, visit int",
    )
    statement.part(
        "commented",
        "INSERT INTO task_comments (id, tenant_id, run_id, task_id, author_role, author_name, comment_type, body,"
        " metrics, blockers, next_steps, rationale, node, visit)"
        " SELECT x.id, go.tenant_id, go.id, x.task_id, x.author_role, x.author_name, x.comment_type, x.body, x.metrics,"
        f" x.blockers, x.next_steps, x.rationale, x.node, x.visit FROM go, {source} WHERE x.n = go.n"
        " ON CONFLICT DO NOTHING",
    )


def _insert_findings(statement: Statement, batch: Sequence[Rows]) -> None:
    findings = _numbered(batch, lambda rows: rows.findings.values())
    if not findings:
        return
    source = statement.records(
        findings,
        "n int, id uuid, task_id uuid, source text, scanner text, rule text, severity text, path text, line int,"
        " message text, fingerprint text, status text",
    )
    statement.part(
        "found",
        "INSERT INTO findings AS f (id, tenant_id, run_id, task_id, source, scanner, rule, severity, path, line,"
        " message, fingerprint, status) SELECT x.id, go.tenant_id, go.id, x.task_id, x.source, x.scanner, x.rule,"
        f" x.severity, x.path, x.line, x.message, x.fingerprint, x.status FROM go, {source} WHERE x.n = go.n"
        " ON CONFLICT (run_id, fingerprint) DO UPDATE SET severity = EXCLUDED.severity, path = EXCLUDED.path,"
        " line = EXCLUDED.line, message = EXCLUDED.message, task_id = coalesce(EXCLUDED.task_id, f.task_id),"
        " updated_at = clock_timestamp(), status = CASE WHEN f.status = 'false_positive' OR (f.status = 'waived'"
        " AND f.waived_until > clock_timestamp()) THEN f.status ELSE EXCLUDED.status END",
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


def _insert_artifacts(statement: Statement, batch: Sequence[Rows]) -> None:
    artifacts = _numbered(batch, lambda rows: rows.artifacts)
    if not artifacts:
        return
    source = statement.records(
        artifacts,
        "n int, id uuid, task_id uuid, artifact_kind text, path text, media_type text, size bigint, sha256 text,"
        " commit text",
    )
    statement.part(
        "made",
        "INSERT INTO artifacts (id, tenant_id, run_id, task_id, kind, path, media_type, size, sha256, commit)"
        " SELECT x.id, go.tenant_id, go.id, x.task_id, x.artifact_kind, x.path, x.media_type, x.size, x.sha256,"
        f" x.commit FROM go, {source} WHERE x.n = go.n ON CONFLICT DO NOTHING",
    )


def _insert_questions(statement: Statement, batch: Sequence[Rows]) -> None:
    # Nobody can answer a run that ends with this commit.
    questions = _numbered(
        batch, lambda rows: [row | {"status": "WITHDRAWN" if rows.end else "OPEN"} for row in rows.questions]
    )
    if not questions:
        return
    source = statement.records(
        questions,
        "n int, id uuid, task_id uuid, key text, question_kind text, text text, asked_by text, options jsonb,"
        ' "default" text, due_seconds int, on_expiry text, status text',
    )
    statement.part(
        "asked",
        'INSERT INTO questions (id, tenant_id, run_id, task_id, key, kind, asked_by, text, options, "default",'
        " due_at, on_expiry, status) SELECT x.id, go.tenant_id, go.id, x.task_id, x.key, x.question_kind, x.asked_by,"
        ' x.text, x.options, x."default", clock_timestamp() + make_interval(secs => x.due_seconds), x.on_expiry,'
        f" x.status FROM go, {source} WHERE x.n = go.n ON CONFLICT DO NOTHING",
    )


_WITHDRAW = "UPDATE questions q SET status = 'WITHDRAWN' FROM go WHERE q.run_id = go.id AND q.status = 'OPEN'"
_CLOSE_PROJECT = {
    completed: f"UPDATE projects p SET status = '{status}', active_run_id = NULL, version = p.version + 1,"
    " updated_at = clock_timestamp() FROM go WHERE p.id = go.project_id AND p.active_run_id = go.id"
    for completed, status in ((True, "COMPLETED"), (False, "FAILED"))
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
