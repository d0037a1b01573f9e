"""The statements of the journal and the ledger: reserve, settle, note; each one round trip and one transaction.

All are fenced: a worker that lost its run changes nothing. A reservation holds its worst case against the run and every
budget beside it, in one condition over locked rows, so that no number of parallel calls passes a limit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

from backend.adapters.db.commit import Fence, Statement
from backend.domain.model import Choice, Position, Quote, Usage

_RUN = (
    "id, tenant_id, project_id, correlation_id, event_seq, limit_tokens, limit_usd, reserved_tokens, reserved_usd,"
    " spent_tokens_input + spent_tokens_output AS spent_tokens, spent_usd, limit_seconds, spent_seconds,"
    " lease_expires_at, granted_until"
)
_SCOPES = (
    "(b.scope = 'run_role' AND b.owner_id = f.id AND b.name = {role})"
    " OR (b.scope = 'project' AND b.owner_id = f.project_id)"
    " OR (b.scope = 'tenant_month' AND b.owner_id = f.tenant_id"
    " AND b.name = to_char({at} AT TIME ZONE 'UTC', 'YYYY-MM'))"
)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of a call, before it is sent."""

    position: Position
    number: int
    role: str
    choice: Choice
    quote: Quote
    request_hash: str
    prompt_hash: str
    task_id: UUID | None
    request: Mapping[str, Any]
    seconds: Decimal = Decimal(0)
    """How long it may take at most, as a limit in seconds of its role counts it; 0: it takes none."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a try ended: what is booked, and what was answered or went wrong."""

    status: str
    usage: Usage = Usage()
    cost_usd: Decimal = Decimal(0)
    response: Mapping[str, Any] | None = None
    error: str | None = None
    latency_ms: int | None = None
    seconds: Decimal = Decimal(0)
    """From sending to its end, on the monotonic clock; never more is booked than was held."""


def reserve(fence: Fence, attempt: Attempt) -> tuple[str, list[Any]]:
    """Hold the worst case and write the call down; the row says `call` (its id) or `breaches`.

    `money_counts`: whether a limit in USD, of whatever scope, counts the call. `seconds`: how long it may take by the
    limit of its role, null where there is none; a role that has less left than the call may take holds what it has.
    """
    statement = _fenced(fence)
    worked = _WORKED.format(ttl=statement.arg(fence.lease_seconds, "double precision"))
    tokens = statement.arg(attempt.quote.tokens, "bigint")
    usd = statement.arg(attempt.quote.usd or Decimal(0), "numeric")
    unpriced = statement.arg(attempt.quote.usd is None, "boolean")
    role = statement.arg(attempt.role, "text")
    scopes = _SCOPES.format(role=role, at="clock_timestamp()")
    statement.part("held", f"SELECT b.* FROM budgets b, fence f WHERE {scopes} ORDER BY b.id FOR NO KEY UPDATE OF b")
    seconds = statement.arg(attempt.seconds, "numeric(14, 6)")
    statement.part(
        "timed",
        f"SELECT least({seconds}, limit_seconds - spent_seconds - reserved_seconds) AS seconds FROM held"
        f" WHERE scope = 'run_role' AND limit_seconds IS NOT NULL AND {seconds} > 0",
    )
    statement.part("limits", _LIMITS.format(tokens=tokens, usd=usd, worked=worked, seconds=seconds))
    statement.part(
        "breach",
        "SELECT * FROM limits WHERE most IS NOT NULL"
        f" AND (spent + held + wanted > most OR (unit = 'usd' AND {unpriced}) OR (unit = 'seconds' AND over))",
    )
    statement.part("go", "SELECT * FROM fence WHERE NOT EXISTS (SELECT FROM breach)")
    grow = f"reserved_tokens = t.reserved_tokens + {tokens}, reserved_usd = t.reserved_usd + {usd}"
    statement.part("run_held", f"UPDATE project_runs t SET {grow} FROM go WHERE t.id = go.id")
    timed = "coalesce((SELECT seconds FROM timed), 0)"
    of_role = f"reserved_seconds = t.reserved_seconds + CASE t.scope WHEN 'run_role' THEN {timed} ELSE 0 END"
    statement.part("also_held", f"UPDATE budgets t SET {grow}, {of_role} FROM go, held WHERE t.id = held.id")
    statement.part("called", _insert_call(statement, fence, attempt, tokens=tokens, usd=usd, role=role, timed=timed))
    final = (
        "SELECT (SELECT count(*) FROM fence) AS fenced, (SELECT id FROM called) AS call,"
        " EXISTS (SELECT FROM limits WHERE unit = 'usd' AND most IS NOT NULL) AS money_counts,"
        " (SELECT seconds FROM timed)::double precision AS seconds,"
        " (SELECT coalesce(jsonb_agg(to_jsonb(breach)), '[]') FROM breach) AS breaches"
    )
    return statement.text(final), statement.args


_WORKED = (
    "(spent_seconds + greatest(0, coalesce(extract(epoch FROM clock_timestamp() - lease_expires_at"
    " + make_interval(secs => {ttl})), 0))::numeric)"
)
"""The run's working time at this moment: what heartbeats booked, and the time since the last one."""

_LIMITS = (
    "SELECT 'run' AS scope, 'all' AS name, 'tokens' AS unit, spent_tokens::numeric AS spent,"
    " reserved_tokens::numeric AS held, {tokens}::numeric AS wanted, limit_tokens::numeric AS most, false AS over"
    " FROM fence"
    " UNION ALL SELECT 'run', 'all', 'usd', spent_usd, reserved_usd, {usd}, limit_usd, false FROM fence"
    " UNION ALL SELECT 'run', 'all', 'seconds', round({worked}, 3), 0, 0, limit_seconds, {worked} >= limit_seconds"
    " FROM fence"
    " UNION ALL SELECT scope, name, 'tokens', spent_tokens, reserved_tokens, {tokens}, limit_tokens, false FROM held"
    " UNION ALL SELECT scope, name, 'usd', spent_usd, reserved_usd, {usd}, limit_usd, false FROM held"
    # Of a role's seconds a call takes what is left; the time of a project or a month was granted to the run before.
    " UNION ALL SELECT h.scope, h.name, 'seconds', h.spent_seconds, h.reserved_seconds, 0, h.limit_seconds,"
    " CASE h.scope WHEN 'run_role' THEN {seconds} > 0 AND h.spent_seconds + h.reserved_seconds >= h.limit_seconds"
    " ELSE coalesce(f.granted_until <= clock_timestamp(), true) END FROM held h, fence f"
)


def _insert_call(
    statement: Statement, fence: Fence, attempt: Attempt, *, tokens: str, usd: str, role: str, timed: str
) -> str:
    position = attempt.position
    values = (
        statement.arg(attempt.task_id, "uuid"),
        statement.arg(position.task_key, "text"),
        statement.arg(position.node, "text"),
        statement.arg(position.visit, "int"),
        statement.arg(position.ordinal, "int"),
        statement.arg(attempt.number, "int"),
        role,
        statement.arg(attempt.choice.provider, "text"),
        statement.arg(attempt.choice.model, "text"),
        statement.arg(attempt.request_hash, "text"),
        statement.arg(attempt.prompt_hash, "text"),
        statement.arg(json.dumps(attempt.request), "jsonb"),
        tokens,
        usd,
        timed,
        statement.arg(attempt.quote.price_version, "text"),
        statement.arg(fence.epoch, "bigint"),
    )
    return (
        "INSERT INTO model_calls (tenant_id, run_id, status, task_id, task_key, node, visit, ordinal, attempt, role,"
        " provider, model, request_hash, prompt_hash, request, reserved_tokens, reserved_usd,"
        " reserved_seconds, price_version, lease_epoch)"
        f" SELECT go.tenant_id, go.id, 'reserved', {', '.join(values)} FROM go RETURNING id"
    )


def settle(
    fence: Fence,
    call: UUID,
    outcome: Outcome,
    events: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    shares: Sequence[float],
    instance: str,
) -> tuple[str, list[Any]]:
    """Book what was billed in place of what was held; warnings are events, once a share.

    A call that is `released` was never sent: nothing is booked, and it does not count as one.
    """
    statement = _fenced(fence)
    usage = outcome.usage
    spent_in = statement.arg(usage.input_tokens, "bigint")
    spent_out = statement.arg(usage.output_tokens, "bigint")
    usd = statement.arg(outcome.cost_usd, "numeric")
    took = statement.arg(outcome.seconds, "numeric(14, 6)")
    changes = ", ".join(
        (
            f"status = {statement.arg(outcome.status, 'text')}",
            f"tokens_input = {spent_in}",
            f"tokens_output = {spent_out}",
            f"tokens_cached = {statement.arg(usage.cached_tokens, 'bigint')}",
            f"cost_usd = {usd}",
            f"seconds = least({took}, nullif(c.reserved_seconds, 0))",
            f"response = {statement.arg(json.dumps(outcome.response) if outcome.response else None, 'jsonb')}",
            f"error = {statement.arg(outcome.error, 'text')}",
            f"latency_ms = {statement.arg(outcome.latency_ms, 'int')}",
            "settled_at = clock_timestamp()",
        )
    )
    statement.part(
        "called",
        f"UPDATE model_calls c SET {changes} FROM fence WHERE c.id = {statement.arg(call, 'uuid')}"
        f" AND c.status = 'reserved' AND c.lease_epoch = {statement.arg(fence.epoch, 'bigint')}"
        " RETURNING c.role, c.created_at, c.reserved_tokens, c.reserved_usd, c.tokens_cached, c.reserved_seconds,"
        " c.seconds",
    )
    scopes = _SCOPES.format(role="c.role", at="c.created_at")
    statement.part(
        "beside", f"SELECT b.* FROM budgets b, fence f, called c WHERE {scopes} ORDER BY b.id FOR NO KEY UPDATE OF b"
    )
    statement.part("told(n, type, payload)", _told(statement, events, shares, f"{spent_in} + {spent_out}", usd))
    asked = statement.arg(outcome.status != "released", "boolean")
    _book(statement, spent_in=spent_in, spent_out=spent_out, usd=usd, asked=asked)
    _log(statement, instance)
    final = "SELECT (SELECT count(*) FROM fence) AS fenced, (SELECT count(*) FROM called) AS settled"
    return statement.text(final), statement.args


def _told(
    statement: Statement,
    events: Sequence[tuple[str, Mapping[str, Any]]],
    shares: Sequence[float],
    tokens: str,
    usd: str,
) -> str:
    types = statement.arg([event_type for event_type, _ in events], "text[]")
    payloads = statement.arg([json.dumps(payload) for _, payload in events], "jsonb[]")
    marks = statement.arg([Decimal(str(share)) for share in shares], "numeric[]")
    return (
        f"SELECT e.n, e.type, e.payload FROM called, unnest({types}, {payloads}) WITH ORDINALITY AS e(type, payload, n)"
        " UNION ALL SELECT 1000, 'budget.warned', jsonb_build_object('scope', l.scope, 'name', l.name, 'unit', u.unit,"
        f" 'share', s.share, 'spent', u.after, 'limit', u.most) FROM called, unnest({marks}) AS s(share),"
        " (SELECT 'run' AS scope, 'all' AS name, spent_tokens, limit_tokens, spent_usd, limit_usd, 0 AS spent_seconds,"
        " NULL::int AS limit_seconds FROM fence UNION ALL SELECT scope, name, spent_tokens, limit_tokens, spent_usd,"
        " limit_usd, spent_seconds, CASE scope WHEN 'run_role' THEN limit_seconds END FROM beside) l,"
        " LATERAL (VALUES"
        f" ('tokens', l.spent_tokens::numeric, (l.spent_tokens + {tokens})::numeric, l.limit_tokens::numeric),"
        f" ('usd', l.spent_usd, l.spent_usd + {usd}, l.limit_usd), ('seconds', l.spent_seconds, l.spent_seconds"
        " + called.seconds, l.limit_seconds)) AS u(unit, before, after, most)"
        " WHERE u.before < u.most * s.share AND u.after >= u.most * s.share"
    )


def _book(statement: Statement, *, spent_in: str, spent_out: str, usd: str, asked: str) -> None:
    statement.part(
        "booked",
        "UPDATE project_runs r SET reserved_tokens = r.reserved_tokens - c.reserved_tokens,"
        f" reserved_usd = r.reserved_usd - c.reserved_usd, spent_tokens_input = r.spent_tokens_input + {spent_in},"
        f" spent_tokens_output = r.spent_tokens_output + {spent_out},"
        " spent_tokens_cached = r.spent_tokens_cached + c.tokens_cached,"
        f" spent_usd = r.spent_usd + {usd}, model_calls = r.model_calls + {asked}::int, updated_at = clock_timestamp(),"
        " event_seq = r.event_seq + (SELECT count(*) FROM told) FROM fence f, called c WHERE r.id = f.id"
        " RETURNING r.id, r.tenant_id, r.project_id, r.correlation_id, r.event_seq",
    )
    statement.part(
        "also_booked",
        f"UPDATE budgets b SET spent_tokens = b.spent_tokens + {spent_in} + {spent_out},"
        f" spent_usd = b.spent_usd + {usd}, reserved_tokens = greatest(0, b.reserved_tokens - c.reserved_tokens),"
        " reserved_usd = greatest(0, b.reserved_usd - c.reserved_usd), spent_seconds = b.spent_seconds + o.spent,"
        " reserved_seconds = greatest(0, b.reserved_seconds - o.held) FROM beside, called c,"
        " LATERAL (SELECT CASE beside.scope WHEN 'run_role' THEN c.seconds ELSE 0 END AS spent,"
        " CASE beside.scope WHEN 'run_role' THEN c.reserved_seconds ELSE 0 END AS held) o WHERE b.id = beside.id",
    )
    statement.part(
        "project_booked",
        f"UPDATE projects p SET spent_usd = p.spent_usd + {usd} FROM fence f, called c"
        f" WHERE p.id = f.project_id AND {usd} <> 0",
    )


def note(
    fence: Fence, event_id: UUID, event_type: str, payload: Mapping[str, Any], instance: str
) -> tuple[str, list[Any]]:
    """Record an event now, unless an earlier try of the visit recorded it."""
    statement = _fenced(fence)
    identity = statement.arg(event_id, "uuid")
    statement.part("go", f"SELECT * FROM fence WHERE NOT EXISTS (SELECT FROM events WHERE event_id = {identity})")
    statement.part(
        "booked",
        "UPDATE project_runs r SET event_seq = r.event_seq + 1 FROM go WHERE r.id = go.id"
        " RETURNING r.id, r.tenant_id, r.project_id, r.correlation_id, r.event_seq",
    )
    statement.part(
        "logged",
        "INSERT INTO events (event_id, tenant_id, project_id, run_id, seq, type, source, instance, correlation_id,"
        f" payload) SELECT {identity}, b.tenant_id, b.project_id, b.id, b.event_seq,"
        f" {statement.arg(event_type, 'text')}, 'engine', {statement.arg(instance, 'text')}, b.correlation_id,"
        f" {statement.arg(json.dumps(payload), 'jsonb')} FROM booked b",
    )
    return statement.text("SELECT (SELECT count(*) FROM fence) AS fenced"), statement.args


def _fenced(fence: Fence) -> Statement:
    statement = Statement()
    run, epoch = statement.arg(fence.run_id, "uuid"), statement.arg(fence.epoch, "bigint")
    statement.part(
        "fence", f"SELECT {_RUN} FROM project_runs WHERE id = {run} AND lease_epoch = {epoch} FOR NO KEY UPDATE"
    )
    return statement


def _log(statement: Statement, instance: str) -> None:
    statement.part(
        "logged",
        "INSERT INTO events (tenant_id, project_id, run_id, seq, type, source, instance, correlation_id, payload)"
        " SELECT b.tenant_id, b.project_id, b.id, b.event_seq - t.total + t.k, t.type, 'engine',"
        f" {statement.arg(instance, 'text')}, b.correlation_id, t.payload FROM booked b, (SELECT type, payload,"
        " row_number() OVER (ORDER BY n) AS k, count(*) OVER () AS total FROM told) t",
    )
