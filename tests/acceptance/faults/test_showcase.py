"""The showcase through real workers that are killed on the way: the same repository, the same rows, the same spend."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from backend.adapters.llm.replay import Recordings
from tests.acceptance.faults import numbers
from tests.acceptance.firm import Firm
from tests.patience import PATIENCE

RECORDING = Recordings().load("showcase")
REPLAY = {
    "models": {"provider": "showcase", "providers": {"showcase": {"kind": "replay", "recording": "showcase"}}},
}
KILLS = 10 if numbers.FULL else 3
"""Each repeats a node with its real tests and scanners."""


async def outcome(firm: Firm, run_id: UUID) -> dict[str, Any]:
    """What is left of a run when it has ended, without what must differ: ids, instants, commits."""
    return {
        "tree": firm.tree(await firm.one("project_id", run_id)),
        "spend": await firm.query(
            "SELECT spent_usd, spent_tokens_input, spent_tokens_output, model_calls, progress, status"
            " FROM project_runs WHERE id = $1",
            run_id,
        ),
        "calls": await firm.query(
            "SELECT node, visit, ordinal, role, task_key, tokens_input, tokens_output, cost_usd FROM model_calls"
            " WHERE run_id = $1 AND status = 'done' ORDER BY 1, 2, 3",
            run_id,
        ),
        "tasks": await firm.query(
            "SELECT key, status, iteration, kind, title FROM tasks WHERE run_id = $1 ORDER BY key", run_id
        ),
        "comments": await firm.query(
            "SELECT node, visit, author_name, comment_type FROM task_comments WHERE run_id = $1 ORDER BY 1, 2, 3, 4",
            run_id,
        ),
        "findings": await firm.query(
            "SELECT source, scanner, rule, severity, path, status FROM findings WHERE run_id = $1 ORDER BY 1, 2, 3, 5",
            run_id,
        ),
        "events": await firm.query(
            "SELECT type, count(*) FROM events WHERE run_id = $1"
            " AND type NOT IN ('run.resumed', 'run.lease_lost') GROUP BY 1 ORDER BY 1",
            run_id,
        ),
    }


@pytest.mark.timeout(1800)  # Two whole showcases.
async def test_the_showcase_killed_on_the_way_ends_as_if_nothing_had_happened(hire: Callable[..., Firm]) -> None:
    firm = hire()
    calm = await firm.begin(RECORDING.brief, **REPLAY)
    worker = firm.start()
    await firm.ended(calm)
    assert await firm.one("status", calm) == "COMPLETED", await firm.explain(calm)
    expected = await outcome(firm, calm)
    keys = {key for key, *_ in expected["tasks"]}
    assert {"bug-1-1", "security-1-1"} <= keys, "QA's tests caught no bug, or the scanners no secret"
    assert {status for _, status, *_ in expected["tasks"]} == {"DONE"}
    assert len(expected["calls"]) == len(RECORDING.steps)

    killed = await firm.begin(RECORDING.brief, **REPLAY)
    steps = len(RECORDING.steps)
    for kill in range(1, KILLS + 1):
        await _calls(firm, killed, kill * steps // (KILLS + 1))
        worker.kill()
        await firm.died(worker)
        await firm.let_leases_end()
        worker = firm.start()
    await firm.ended(killed)
    found = await outcome(firm, killed)
    for part, rows in expected.items():
        assert found[part] == rows, part
    await firm.check()
    numbers.report("kill at: showcase", KILLS, KILLS, "kills", model_calls=len(expected["calls"]))


async def _calls(firm: Firm, run_id: UUID, number: int) -> None:
    """Wait until so many calls are paid."""
    async with asyncio.timeout(PATIENCE):
        while await firm.one("model_calls", run_id) < number:
            assert await firm.one("ended_at", run_id) is None, await firm.explain(run_id)
            await asyncio.sleep(0.01)
