"""The showcase through the engine: the recorded company on a real database, with real git, sandbox and checks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from backend.adapters.llm.gateway import Gateway
from backend.adapters.llm.replay import Recordings
from backend.engine.workbench import workbenches
from backend.settings import Settings
from tests.integration.engine.conftest import Company

REPLAY = {
    "graph": "software_company",
    "models": {"provider": "showcase", "providers": {"showcase": {"kind": "replay", "recording": "showcase"}}},
}


@pytest.fixture
async def showcase(company: Company, tmp_path: Path) -> AsyncIterator[Company]:
    settings = Settings(home=tmp_path, redis_url=None)
    gateway = Gateway(settings)
    company.transport = gateway  # type: ignore[assignment] # the real transport where the scripted one stood
    company.executor = company.worker("showcase", lease_seconds=60)
    company.executor.workbenches = workbenches(settings)
    yield company
    await gateway.close()


RECORDING = Recordings().load("showcase")


async def start(company: Company, **changes: Any) -> UUID:
    return await company.run(brief=RECORDING.brief, **REPLAY, **changes)


async def test_the_showcase_runs_to_its_end(showcase: Company) -> None:
    run_id = await start(showcase)
    await showcase.executor.execute(run_id)
    row = await showcase.row(run_id)
    assert (row["status"], row["error"]) == ("COMPLETED", None)
    await showcase.check(run_id)
    tasks = await showcase.pool.fetch("SELECT key, status FROM tasks WHERE run_id = $1", run_id)
    assert {task["status"] for task in tasks} == {"DONE"}
    assert {"bug-1-1", "security-1-1"} <= {task["key"] for task in tasks}
    calls = await showcase.pool.fetchval(
        "SELECT count(*) FROM model_calls WHERE run_id = $1 AND status = 'done'", run_id
    )
    assert calls == len(RECORDING.steps)
