"""A node that takes its worker down: given up after exactly `max_claims`, while the other runs go on unhurt."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import UUID

import pytest

from tests.acceptance.faults import numbers
from tests.acceptance.faults.conftest import Crew
from tests.acceptance.faults.nursery import Nursery
from tests.acceptance.faults.test_crashes import CALLS
from tests.patience import PATIENCE

MAX_CLAIMS = 3
WORKERS = 3
_CLAIMS = (
    "SELECT count(*) FROM events WHERE run_id = $1 AND type IN ('run.started', 'run.resumed') AND seq >"
    " (SELECT max(seq) FROM events WHERE run_id = $1 AND type = 'node.finished')"
)
"""How often a run was taken up since it last got on."""


async def _until_ended(crew: Crew, nursery: Nursery, poisoned: UUID) -> tuple[list[UUID], int]:
    """Replace the workers that die and keep other runs coming until all have ended; returns those, and the deaths."""
    environment = crew.environment | {"COMPANY_ENGINE__MAX_CLAIMS": str(MAX_CLAIMS)}
    environment["COMPANY_ENGINE__STALL_SECONDS"] = "5"
    others, deaths = [await crew.run()], 0
    async with asyncio.timeout(PATIENCE):
        while going := await crew.query("SELECT id FROM project_runs WHERE ended_at IS NULL"):
            for pid in [pid for pid in nursery.alive if not Path(f"/proc/{pid}").exists()]:
                nursery.alive.remove(pid)
                deaths += 1
            while len(nursery.alive) < WORKERS:
                nursery.start(environment)
            if going == [(poisoned,)]:
                others.append(await crew.run())
            await asyncio.sleep(0.1)
    return others, deaths


@pytest.mark.parametrize("way", ["exits", "spins", "eats"])
async def test_a_node_that_takes_its_worker_down_is_given_up_after_so_many_claims(
    crew: Crew, nursery: Nursery, way: str
) -> None:
    poisoned = await crew.run(f"a node that {way}")
    others, deaths = await _until_ended(crew, nursery, poisoned)
    numbers.report(f"poison: {way}", deaths, MAX_CLAIMS, "workers taken down", other_runs=len(others))
    assert await crew.query(_CLAIMS, poisoned) == [(MAX_CLAIMS,)]
    # Each of them took a worker down, and so did the one that got as far as the node.
    assert deaths > MAX_CLAIMS
    found = await crew.query("SELECT status, stop_reason, claims FROM project_runs WHERE id = $1", poisoned)
    assert found == [("FAILED", "poisoned", MAX_CLAIMS)]
    assert await crew.query("SELECT run_id, kind, node FROM dead_letters") == [(poisoned, "run", "confirm")]
    await _unhurt(crew, others)


async def _unhurt(crew: Crew, others: list[UUID]) -> None:
    ends = await crew.query("SELECT DISTINCT status FROM project_runs WHERE id = ANY ($1)", others)
    assert ends == [("COMPLETED",)], crew.log()
    stories = [await crew.story(run_id) for run_id in others]
    assert all(story == stories[0] for story in stories)
    done = await crew.query(
        "SELECT DISTINCT count(*) FROM model_calls WHERE status = 'done' AND run_id = ANY ($1) GROUP BY run_id", others
    )
    assert done == [(CALLS,)]
    await crew.check()
