"""The same request many times at once, while the api is killed: done once, and answered alike."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from uuid import uuid4

import httpx

from backend.adapters.db.engine import Sessions
from backend.adapters.db.tables import ProjectTemplate
from tests.acceptance.faults import numbers
from tests.acceptance.faults.conftest import Crew
from tests.acceptance.faults.desk import Desk
from tests.acceptance.faults.nursery import Nursery
from tests.patience import PATIENCE

EQUAL = 50


async def _insist(desk: Desk, key: str, body: dict[str, str], tries: Counter[str]) -> tuple[int, str]:
    """Send a request until it is answered."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                answer = await desk.client.post("/api/projects", json=body, headers={"Idempotency-Key": key})
            except httpx.TransportError:
                tries["cut"] += 1
            else:
                tries["answered"] += 1
                if answer.status_code not in {503, 409}:
                    return answer.status_code, answer.text
                tries["put off"] += 1
            await asyncio.sleep(0.1)


async def test_equal_requests_at_once_are_done_once_though_the_api_is_killed(
    crew: Crew, nursery: Nursery, sessions: Sessions
) -> None:
    async with sessions.begin() as session:
        described = {"title": "Standard", "graph": "software_company", "content_hash": "0" * 64}
        session.add(ProjectTemplate(slug="standard", version=1, config_patch={}, **described))
    keys, kills, tries, chance = max(3, numbers.of(30)), 0, Counter[str](), random.Random(9)
    async with Desk(crew, nursery) as desk:
        for number in range(keys):
            key, body = f"key-{uuid4().hex}", {"name": f"Project {number}", "brief": "A library that greets."}
            sending = [asyncio.create_task(_insist(desk, key, body, tries)) for _ in range(EQUAL)]
            await asyncio.sleep(chance.uniform(0, 0.3))
            await desk.kill()
            kills += 1
            desk.open()
            answers = set(await asyncio.gather(*sending))
            assert len(answers) == 1, answers
            status, said = answers.pop()
            assert status == 201, said
            found = await crew.query("SELECT id::text FROM projects WHERE name = $1", f"Project {number}")
            assert found == [(json.loads(said)["id"],)]
    assert len(await crew.query("SELECT 1 FROM idempotency_keys")) == keys
    counts = {"keys": keys, "requests cut": tries["cut"], "sent in all": tries.total()}
    numbers.report("idempotency", kills, keys, "kills of the api", **counts)
    assert tries["answered"] >= keys * EQUAL
