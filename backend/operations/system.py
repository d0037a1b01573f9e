"""The company at a glance: counts, queue, spend; read from Postgres, so it is true with no worker alive."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

_OVERVIEW = text("""
SELECT json_build_object(
  'runs', (SELECT coalesce(json_object_agg(status, n), '{}') FROM
    (SELECT status, count(*) n FROM project_runs GROUP BY status) s),
  'projects', (SELECT coalesce(json_object_agg(status, n), '{}') FROM
    (SELECT status, count(*) n FROM projects GROUP BY status) s),
  'queue', json_build_object(
    'runs', (SELECT count(*) FROM project_runs WHERE status = 'QUEUED'),
    'oldest_seconds', (SELECT coalesce(round(extract(epoch FROM clock_timestamp() - min(queued_at)), 3), 0)
      FROM project_runs WHERE status = 'QUEUED')),
  'leases', json_build_object(
    'live', (SELECT count(*) FROM project_runs WHERE status = 'RUNNING' AND lease_expires_at > clock_timestamp()),
    'expired', (SELECT count(*) FROM project_runs WHERE status = 'RUNNING' AND
      coalesce(lease_expires_at <= clock_timestamp(), true))),
  'open_questions', (SELECT count(*) FROM questions WHERE status = 'OPEN'),
  'dead_letters', (SELECT count(*) FROM dead_letters WHERE replayed_at IS NULL),
  'spent', (SELECT json_build_object('usd', coalesce(sum(spent_usd), 0)::numeric(14, 6)::text,
      'tokens', coalesce(sum(spent_tokens_input + spent_tokens_output), 0)) FROM project_runs)
)
""")

_BURN = text("""
SELECT run.id, project.name, run.number,
    greatest((run.spent_usd + run.reserved_usd) / run.limit_usd,
        (run.spent_tokens_input + run.spent_tokens_output + run.reserved_tokens)::numeric / run.limit_tokens,
        run.spent_seconds / run.limit_seconds) AS share
FROM project_runs run JOIN projects project ON project.id = run.project_id
WHERE run.status IN ('QUEUED', 'RUNNING', 'PAUSED', 'WAITING')
ORDER BY run.created_at DESC LIMIT 500
""")


async def overview(session: AsyncSession) -> dict[str, Any]:
    """Counts by status, the queue, leases, what waits for people, and what was spent."""
    found: dict[str, Any] = await session.scalar(_OVERVIEW) or {}
    return found


async def gauges(session: AsyncSession) -> list[Metric]:
    """What Prometheus is told from the database: counts, queue age and how far each active run is into its budget."""
    return list(_gauges(await overview(session), (await session.execute(_BURN)).all()))


def _gauges(facts: dict[str, Any], burns: Any) -> Iterator[Metric]:
    yield _by_status("company_runs", "Runs by status", facts["runs"])
    yield _by_status("company_projects", "Projects by status", facts["projects"])
    yield _single("company_queue_runs", "Runs that wait for a worker", facts["queue"]["runs"])
    yield _single("company_queue_age_seconds", "Age of the longest waiting run", facts["queue"]["oldest_seconds"])
    yield _single("company_leases_expired", "Runs whose worker is gone", facts["leases"]["expired"])
    yield _single("company_questions_open", "Questions nobody answered yet", facts["open_questions"])
    yield _single("company_dead_letters", "Runs that could not be executed", facts["dead_letters"])
    yield _single("company_spent_usd", "Money spent by all runs", float(facts["spent"]["usd"]))
    burn = GaugeMetricFamily(
        "company_budget_burn_ratio",
        "Largest share of a limit that an active run has spent or holds",
        labels=("run", "project", "number"),
    )
    for run_id, project, number, share in burns:
        if share is not None:
            burn.add_metric((str(run_id), project, str(number)), float(share))
    yield burn


def _by_status(name: str, about: str, counts: dict[str, int]) -> Metric:
    family = GaugeMetricFamily(name, about, labels=("status",))
    for status, count in sorted(counts.items()):
        family.add_metric((status,), count)
    return family


def _single(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(name, about, value=value)
