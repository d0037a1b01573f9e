"""Grants: pieces of time that a run holds in the budgets that it shares with other runs, while it works.

One fenced statement books what was worked of the piece before and holds the next. What ends a lease, whoever does it,
books the rest: the trigger `book_grant` does that in the statement that takes the lease away.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from backend.adapters.db.commit import Fence, Statement

SHARED = (
    "(b.scope = 'project' AND b.owner_id = {run}.project_id) OR (b.scope = 'tenant_month'"
    " AND b.owner_id = {run}.tenant_id AND b.name = to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM'))"
)
"""Which rows of budgets `b` a run shares at this moment."""


def renew(fence: Fence, seconds: float, shares: Sequence[float], instance: str) -> tuple[str, list[Any]]:
    """Book what was worked since the last grant, and grant at most `seconds` from now on.

    The row says `seconds`: how long the run may work (0: not at all; null: nothing that it shares has such a limit),
    and which limit has least left: `scope`, `name`, `most`. Shares of a limit are told of once, by whoever works next.
    """
    statement = Statement()
    run, epoch = statement.arg(fence.run_id, "uuid"), statement.arg(fence.epoch, "bigint")
    piece = statement.arg(Decimal(str(seconds)), "numeric(14, 6)")
    marks = statement.arg([Decimal(str(share)) for share in shares], "numeric[]")
    # Not after the lease was given back either, which keeps the epoch: nobody would end such a grant.
    owned = f"id = {run} AND lease_epoch = {epoch} AND lease_owner IS NOT NULL"
    statement.part("fence", f"SELECT * FROM project_runs WHERE {owned} FOR NO KEY UPDATE")
    _count(statement, piece)
    statement.part("told", _told(marks))
    statement.part(
        "booked_budgets",
        "UPDATE budgets b SET spent_seconds = c.spent, told_seconds = greatest(c.told_seconds, c.spent),"
        " reserved_seconds = c.others + CASE WHEN c.counts THEN g.seconds ELSE 0 END"
        " FROM counted c LEFT JOIN granted g ON true WHERE b.id = c.id AND (c.was OR c.counts)",
    )
    statement.part("booked", _BOOKED)
    statement.part(
        "logged",
        "INSERT INTO events (tenant_id, project_id, run_id, seq, type, source, instance, correlation_id, payload)"
        " SELECT r.tenant_id, r.project_id, r.id, r.event_seq - t.total + t.k, 'budget.warned', 'engine',"
        f" {statement.arg(instance, 'text')}, r.correlation_id, t.payload FROM booked r,"
        " (SELECT payload, row_number() OVER (ORDER BY share) AS k, count(*) OVER () AS total FROM told) t",
    )
    final = (
        "SELECT (SELECT count(*) FROM fence) AS fenced, (SELECT count(*) FROM told) AS told,"
        " g.seconds::double precision AS seconds, l.scope, l.name,"
        " l.limit_seconds AS most FROM (SELECT) one LEFT JOIN granted g ON true LEFT JOIN LATERAL"
        " (SELECT * FROM counted WHERE counts ORDER BY limit_seconds - spent - others, id LIMIT 1) l ON true"
    )
    return statement.text(final), statement.args


_BOOKED = (
    "UPDATE project_runs r SET granted_at = n.since, granted_until = n.since + n.seconds * interval '1 second',"
    " granted_budgets = n.budgets, event_seq = r.event_seq + (SELECT count(*) FROM told) FROM fence f, (SELECT"
    " CASE WHEN g.seconds > 0 THEN p.now END AS since, g.seconds, CASE WHEN g.seconds > 0 THEN g.budgets END AS budgets"
    " FROM past p LEFT JOIN granted g ON true) n WHERE r.id = f.id"
    " RETURNING r.id, r.tenant_id, r.project_id, r.correlation_id, r.event_seq"
)


def _told(marks: str) -> str:
    return (
        "SELECT s.share, jsonb_build_object('scope', scope, 'name', name, 'unit', 'seconds', 'share', s.share, 'spent',"
        f" spent, 'limit', limit_seconds) AS payload FROM counted, unnest({marks}) AS s(share)"
        " WHERE counts AND told_seconds < limit_seconds * s.share AND spent >= limit_seconds * s.share"
    )


def _count(statement: Statement, piece: str) -> None:
    """Lock the budgets, and count what was worked in those before and what may be granted in those of now."""
    counts = f"b.limit_seconds IS NOT NULL AND ({SHARED.format(run='f')})"
    statement.part(
        "held",
        f"SELECT b.*, b.id = ANY (coalesce(f.granted_budgets, '{{}}')) AS was, {counts} AS counts"
        " FROM budgets b, fence f"
        f" WHERE {SHARED.format(run='f')} OR b.id = ANY (f.granted_budgets) ORDER BY b.id FOR NO KEY UPDATE OF b",
    )
    # After the locks: who waited for them has worked meanwhile.
    statement.part("clock", "SELECT clock_timestamp() AS now FROM (SELECT count(*) FROM held) counted")
    statement.part(
        "past",
        "SELECT now, coalesce(extract(epoch FROM granted_until - granted_at), 0) AS granted,"
        " coalesce(extract(epoch FROM least(now, granted_until) - granted_at), 0) AS worked FROM fence, clock",
    )
    statement.part(
        "counted",
        "SELECT h.*, h.spent_seconds + CASE WHEN was THEN worked ELSE 0 END AS spent,"
        " greatest(0, h.reserved_seconds - CASE WHEN was THEN granted ELSE 0 END) AS others FROM held h, past",
    )
    statement.part(
        "granted",
        f"SELECT greatest(0, least({piece}, min(limit_seconds - spent - others))) AS seconds, array_agg(id) AS budgets"
        " FROM counted WHERE counts HAVING count(*) > 0",
    )
