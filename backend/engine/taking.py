"""The statement that makes runs ours: one by itself, or all that are asked for while another is on its way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import asyncpg

from backend.adapters.db import grants
from backend.adapters.db.checkpointer.sending import LOST_CONNECTION
from backend.domain.question import interrupt_key
from backend.operations import events

_log = logging.getLogger(__name__)
_MOST = 24
"""Runs in one statement."""
_FREE = (
    "claims < $4 AND (status = 'QUEUED'"
    " OR (status = 'RUNNING' AND coalesce(lease_expires_at < clock_timestamp(), true)))"
)


def _take(run: str, *, before: str = "", source: str = "", shown: str) -> str:
    """The statement for the runs that `run` names: each is taken, told of, and its project works."""
    return (
        f"WITH {before}taken AS (UPDATE project_runs r SET status = 'RUNNING', lease_epoch = lease_epoch + 1,"
        " lease_owner = $2, lease_expires_at = clock_timestamp() + make_interval(secs => $3), claims = claims + 1,"
        " started_at = coalesce(started_at, clock_timestamp()), updated_at = clock_timestamp(), version = version + 1,"
        " event_seq = event_seq + CASE WHEN lease_owner IS NULL THEN 1 ELSE 2 END,"
        # Only to texts that are kept, and only where the settings leave open to which; else `Library.pin` does it.
        " prompts = CASE WHEN prompts IS NULL AND NOT EXISTS (SELECT FROM jsonb_each_text($6::jsonb) own WHERE NOT"
        " EXISTS (SELECT FROM prompts kept WHERE kept.sha256 = own.value)) AND NOT jsonb_path_exists(config_snapshot,"
        " '$.roles.*.prompt_version ? (@ != null && @ != \"latest\")') THEN $6::jsonb ELSE prompts END"
        f"{source} WHERE r.id = {run} AND {_FREE}"
        " RETURNING r.*, old.lease_owner AS before, old.started_at IS NULL AS first),"
        " working AS (UPDATE projects p SET status = 'RUNNING', version = p.version + 1, updated_at = clock_timestamp()"
        " FROM taken t WHERE p.id = t.project_id AND p.status <> 'RUNNING'),"
        " told(run, seq, type, payload) AS ("
        "SELECT id, event_seq - 1, 'run.lease_lost', jsonb_build_object('owner', before) FROM taken"
        " WHERE before IS NOT NULL"
        " UNION ALL SELECT id, event_seq, CASE WHEN first THEN 'run.started' ELSE 'run.resumed' END,"
        " jsonb_build_object('owner', lease_owner, 'epoch', lease_epoch, 'node', current_node) FROM taken),"
        " logged AS (INSERT INTO events"
        " (tenant_id, project_id, run_id, seq, type, source, instance, correlation_id, payload)"
        " SELECT t.tenant_id, t.project_id, t.id, told.seq, told.type, 'engine', $5, t.correlation_id, told.payload"
        " FROM taken t JOIN told ON told.run = t.id)"
        f" {shown}"
    )


_SHOWN = (
    "t.project_id, t.tenant_id, t.number, t.brief, t.config_snapshot::text AS config, t.created_at,"
    " t.correlation_id, t.graph, t.graph_version, t.lease_epoch, t.head_checkpoint_id AS head, t.requested, t.claims,"
    " t.prompts::text AS pins,"
    " t.limit_seconds, (t.limit_seconds - t.spent_seconds)::double precision AS seconds_left, t.first,"
    " (SELECT num_nonnulls(monthly_budget_tokens, monthly_budget_usd, monthly_budget_seconds) > 0 FROM tenants"
    " WHERE id = t.tenant_id) AS capped, p.name AS project_name,"
    f" EXISTS (SELECT FROM budgets b WHERE b.limit_seconds IS NOT NULL AND ({grants.SHARED.format(run='t')})) OR EXISTS"
    " (SELECT FROM tenants WHERE id = t.tenant_id AND monthly_budget_seconds IS NOT NULL) AS timed"
)
_PAST = (
    "SELECT coalesce((SELECT jsonb_object_agg(key, jsonb_build_array(answer, coalesce(answered_by, '')))"
    " FROM questions WHERE run_id = {run} AND answer IS NOT NULL), '{{}}')::text AS answers,"
    " ARRAY(SELECT fingerprint FROM findings WHERE run_id = {run} AND (status = 'false_positive'"
    " OR (status = 'waived' AND waived_until > clock_timestamp()))) AS waived,"
    " EXISTS (SELECT FROM events WHERE run_id = {run} AND type = 'budget.degraded') AS degraded,"
    " EXISTS (SELECT FROM questions WHERE run_id = {run} AND status = 'OPEN' AND kind <> 'budget'"
    f" AND key NOT LIKE '{interrupt_key('%')}') AS asks,"
    " EXISTS (SELECT FROM model_calls WHERE run_id = {run} AND status = 'reserved') AS held"
)
"""What was said and done since a run began. It is only right beside a row that nobody changed since the statement
began: one that had to wait for the row's lock would not see what was committed meanwhile."""
_PAST_ALONE = _PAST.format(run="$1")
_NO_PAST = dict.fromkeys(("answers", "waived", "degraded", "asks", "held"))
_ALONE = _take("$1", shown=f"SELECT {_SHOWN} FROM taken t JOIN projects p ON p.id = t.project_id")
# A run whose row, or whose project's, somebody holds or has just changed is left out: it waits by itself.
_TOGETHER = _take(
    "free.id",
    before=f"due AS MATERIALIZED (SELECT id, xmin AS seen FROM project_runs WHERE id = ANY($1::uuid[]) AND {_FREE}),"
    " free AS (SELECT r.id FROM due JOIN project_runs r ON r.id = due.id AND r.xmin = due.seen"
    " JOIN projects p ON p.id = r.project_id FOR NO KEY UPDATE OF r, p SKIP LOCKED), ",
    source=" FROM free",
    shown=f"SELECT due.id AS run_id, t.id IS NOT NULL AS taken, {_SHOWN}, past.* FROM due"
    " LEFT JOIN taken t ON t.id = due.id LEFT JOIN projects p ON p.id = t.project_id"
    f" LEFT JOIN LATERAL ({_PAST.format(run='t.id')}"
    " WHERE NOT t.first OR t.head_checkpoint_id IS NOT NULL) past ON true",
)
_LEFT_OUT = {"taken": False}


class Taker:
    """Takes runs up for an owner, as long as they were claimed less than `most` times since they last got on."""

    def __init__(self, pool: Any, *, owner: str, lease_seconds: float, most: int, pins: str) -> None:
        self._pool, self._given = pool, (owner, lease_seconds, most, events.instance(), pins)
        self._asked: dict[UUID, asyncio.Future[Mapping[str, Any] | None]] = {}
        self._taking: asyncio.Task[None] | None = None
        self._alone = 0

    async def take(self, run_id: UUID) -> Mapping[str, Any] | None:
        """Take a run: what its owner has to know, or None when it is not to be had."""
        quiet = not self._alone and (self._taking is None or self._taking.done())
        if quiet or run_id in self._asked:
            return await self._take_alone(run_id)
        found = self._asked[run_id] = asyncio.get_running_loop().create_future()
        self._set_off()
        row = await found
        return row if row is None or row["taken"] else await self._take_alone(run_id)

    def _set_off(self, _: object = None) -> None:
        if self._asked and (self._taking is None or self._taking.done()):
            self._taking = asyncio.ensure_future(self._take_together())
            self._taking.add_done_callback(self._set_off)

    async def _take_alone(self, run_id: UUID) -> Mapping[str, Any] | None:
        self._alone += 1
        try:
            row = await self._pool.fetchrow(_ALONE, run_id, *self._given)
        finally:
            self._alone -= 1
        if row is None:
            return None
        # What nobody began has no past that could be known.
        begun = not row["first"] or row["head"] is not None
        return {**row, **(await self._pool.fetchrow(_PAST_ALONE, run_id) if begun else _NO_PAST)}

    async def _take_together(self) -> None:
        """Take those that are asked for; what is asked for while their statement is on its way goes with the next."""
        batch = {run_id: self._asked.pop(run_id) for run_id in [*self._asked][:_MOST]}
        try:
            rows = {row["run_id"]: row for row in await self._pool.fetch(_TOGETHER, [*batch], *self._given)}
            _settle({found: rows.get(run_id) for run_id, found in batch.items()})
        except LOST_CONNECTION as error:
            for found in batch.values():
                if not found.done():
                    found.set_exception(error)
        except asyncpg.PostgresError as error:
            _log.info("%s runs could not be taken together, each is tried by itself: %s", len(batch), error)
        finally:
            _settle(dict.fromkeys(batch.values(), _LEFT_OUT))


def _settle(found: Mapping[asyncio.Future[Any], Any]) -> None:
    for future, row in found.items():
        if not future.done():
            future.set_result(row)
