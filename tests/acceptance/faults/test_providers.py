"""Providers that fail, for two worker processes over real HTTP: fallbacks, patience, rate limits; a row an attempt."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from uuid import UUID

from backend.adapters.db.tables import Project
from backend.domain.config import RunConfig
from backend.operations import runs
from tests.acceptance.faults.conftest import Crew
from tests.acceptance.faults.nursery import Nursery
from tests.openai_server import OpenAIServer, Reply, error, position_of, text
from tests.patience import PATIENCE

CALLS = 16
RETRY_AFTER = 1.0


class Moody:
    """Asks for patience at each run's first try of a review, answers nothing of the plan, and all the rest."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, Any], list[float]] = {}
        self.asked_patience: set[tuple[str, Any]] = set()
        self._lock = threading.Lock()

    def __call__(self, body: dict[str, Any], headers: Mapping[str, str]) -> Reply:
        place = position_of(headers)
        assert place is not None
        who = (str(body["model"]), place)  # each run has a model of its own
        with self._lock:
            times = self.seen.setdefault(who, [])
            times.append(time.time())
            first = len(times) == 1
        if first and place[1] == "review":
            self.asked_patience.add(who)
            if place[3] == 1:
                return error(429, retry_after=RETRY_AFTER)
            return error(429, retry_after=format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True))
        if place[1] == "plan":
            return error(503)
        return text("fine").billed(100, 20).after(0.01)


async def _run(crew: Crew, providers: dict[str, Any], model: str = "scripted") -> UUID:
    config = RunConfig.model_validate(
        {
            "graph": "chain",
            "models": {
                "provider": "first",
                "default": model,
                "prices": dict.fromkeys((model, "scripted"), {"input": 1, "output": 2}),
                "providers": providers,
            },
            "sandbox": {"level": "unsafe"},
        }
    )
    async with crew.sessions.begin() as session:
        run = await crew.make_run(session, config=config, brief="go")
        (await session.get_one(Project, run.project_id)).active_run_id = run.id
    return UUID(str(run.id))


async def test_two_workers_fall_back_and_have_patience_and_every_attempt_is_a_row(crew: Crew, nursery: Nursery) -> None:
    moody = Moody()
    for _ in range(2):
        nursery.start(crew.environment)
    with OpenAIServer(moody) as first:
        providers = {
            "first": {"base_url": first.base_url, "fallbacks": ["second"], "retries": 1},
            "second": {"base_url": crew.server.base_url, "default_model": "scripted"},
        }
        made = [await _run(crew, providers, f"scripted-{number}") for number in range(2)]
        await crew.ended(*made)
        sent = len(first.requests) + len(crew.server.requests)
    assert set(await crew.query("SELECT status FROM project_runs")) == {("COMPLETED",)}, crew.log()
    rows = Counter(
        {row[:3]: row[3] for row in await crew.query(
            "SELECT node, provider, status, count(*) FROM model_calls GROUP BY 1, 2, 3"
        )}
    )  # fmt: skip
    # Eight failures in a row, were one worker to see them all, do not open the first provider's circuit.
    assert rows["plan", "first", "failed"] == 2 * rows["plan", "second", "done"] == 4 * len(made)
    assert rows["review", "first", "failed"] == rows["review", "first", "done"] == 2 * len(made)
    assert sum(rows.values()) == sent, "every attempt is a row, every row an attempt"
    waited = [later - earlier for who in moody.asked_patience for earlier, later in [moody.seen[who][:2]]]
    assert len(waited) == 2 * len(made)
    assert min(waited) >= RETRY_AFTER, "who asks for patience gets it, in seconds and as a date"
    await crew.check()


async def test_two_workers_keep_a_rate_limit_together(crew: Crew, nursery: Nursery) -> None:
    most = 13
    providers = {"first": {"base_url": crew.server.base_url, "requests_per_minute": most}}
    made = [await _run(crew, providers) for _ in range(4)]
    for _ in range(2):
        # Neither can take them all.
        nursery.start(crew.environment | {"COMPANY_ENGINE__CONCURRENCY": "2"})
    async with asyncio.timeout(PATIENCE):
        while len(crew.server.requests) < most or len(await _owners(crew)) < 2:
            await asyncio.sleep(0.05)
    await asyncio.sleep(1.0)
    for run_id in made:
        async with crew.sessions.begin() as session:
            await runs.stop(session, run_id, by="ada")
    await crew.ended(*made)
    sent = [request.at for request in crew.server.requests]
    assert all(later - earlier > 30 for earlier, later in zip(sent, sent[most:], strict=False)), "the next minute's"
    assert await crew.query("SELECT count(*) FROM model_calls") == [(len(sent),)], "who waits holds no budget"
    await crew.check()


async def _owners(crew: Crew) -> set[Any]:
    return set(await crew.query("SELECT DISTINCT lease_owner FROM project_runs WHERE lease_owner IS NOT NULL"))
