"""Releases come and go while runs are on their way: each goes on with the graph, settings and prompts it began with."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from backend.adapters.db.engine import Sessions
from backend.adapters.db.tables import ProjectTemplate
from backend.agents.prompt import installed as installed_prompts
from tests.acceptance.faults import numbers
from tests.acceptance.faults.conftest import ROOT, Crew, installed
from tests.acceptance.faults.desk import Desk
from tests.acceptance.faults.nursery import Nursery
from tests.acceptance.faults.test_crashes import CALLS
from tests.acceptance.firm import Firm
from tests.openai_server import Received, Reply, position_of
from tests.patience import PATIENCE
from tests.small_company import SmallCompany

_ENDS = "SELECT status, stop_reason, error FROM project_runs WHERE id = $1"
_PINNED = "SELECT graph, graph_version, config_snapshot::text FROM project_runs WHERE id = $1"


class Deployments:
    """Releases of one installation that offer other versions of the graph, each by a worker and an api."""

    def __init__(self, crew: Crew, nursery: Nursery, folder: Path) -> None:
        self._crew, self._nursery = crew, nursery
        self.paths = {
            "first": installed(folder / "first", "CHAIN"),
            "second": installed(folder / "second", "SECOND_CHAIN"),
            "both": installed(folder / "both", "CHAIN", "SECOND_CHAIN"),
        }
        self._worker = 0
        self.deployed = 0

    async def deploy(self, release: str) -> Desk:
        """Let the worker before leave and start one of another release; returns the api of that release."""
        if self._worker:
            os.kill(self._worker, signal.SIGTERM)
            await self._nursery.gone(self._worker)
        path = {"PYTHONPATH": self.paths[release]}
        self._worker = self._nursery.start(self._crew.environment | path)
        self.deployed += 1
        return Desk(self._crew, self._nursery, **path)


async def _status(crew: Crew, run_id: UUID, status: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while (await crew.query(_ENDS, run_id))[0][0] != status:
            await asyncio.sleep(0.05)


async def _answer(crew: Crew, desk: Desk, run_id: UUID) -> None:
    ((question,),) = await crew.query("SELECT id FROM questions WHERE run_id = $1 AND status = 'OPEN'", run_id)
    assert await desk.status("POST", f"/api/questions/{question}/answer", json={"answer": "blue"}) == 200


async def _start(crew: Crew, desk: Desk, name: str) -> UUID:
    """A run of a new project, as a person starts it."""
    made = await desk.client.post("/api/projects", json={"name": name, "brief": "go"})
    chosen = crew.config().model_dump(mode="json", include={"graph", "models", "sandbox"}, exclude_unset=True)
    started = await desk.client.post(f"/api/projects/{made.json()['id']}/runs", json={"config": chosen})
    assert started.status_code == 201, started.text
    return UUID(started.json()["id"])


async def _said(crew: Crew, run_id: UUID) -> dict[str, Any]:
    found = await crew.query("SELECT final_report::text FROM project_runs WHERE id = $1", run_id)
    report: dict[str, Any] = json.loads(found[0][0])
    return report["said"]


async def test_a_run_keeps_its_graph_and_settings_across_deploys_and_is_refused_clearly_without_them(
    crew: Crew, nursery: Nursery, sessions: Sessions, tmp_path: Path
) -> None:
    async with sessions.begin() as session:
        described = {"title": "Standard", "graph": "chain", "content_hash": "0" * 64}
        session.add(ProjectTemplate(slug="standard", version=1, config_patch={}, **described))
    releases = Deployments(crew, nursery, tmp_path / "releases")
    kept, lost = [await crew.run("a question") for _ in range(2)]
    await releases.deploy("first")
    for run_id in (kept, lost):
        await _status(crew, run_id, "WAITING")
    pinned = [await crew.query(_PINNED, run_id) for run_id in (kept, lost)]

    async with await releases.deploy("both") as desk:
        newer = await _start(crew, desk, "Newer")
        await _answer(crew, desk, kept)
        await crew.ended(kept, newer)
    async with await releases.deploy("second") as desk:
        await _answer(crew, desk, lost)
        await _status(crew, lost, "FAILED")
        ((_, reason, error),) = await crew.query(_ENDS, lost)
    assert reason == "graph_gone"
    assert "pinned to version 1 of the graph chain, but only version 2 is installed" in error
    async with await releases.deploy("both") as desk:
        assert await desk.status("POST", f"/api/runs/{lost}/retry") == 200
        await crew.ended(lost)

    numbers.report("deploys", releases.deployed, 4, "releases", runs_in_flight=2, runs_of_the_newer_graph=1)
    assert set(await crew.query("SELECT status FROM project_runs")) == {("COMPLETED",)}, crew.log()
    assert [await crew.query(_PINNED, run_id) for run_id in (kept, lost)] == pinned
    versions = [(await crew.query(_PINNED, run_id))[0][1] for run_id in (kept, lost, newer)]
    assert versions == ["1", "1", "2"]
    assert ["signed" in await _said(crew, run_id) for run_id in (kept, lost, newer)] == [False, False, True]
    assert sum(crew.asked.values()) == 3 * CALLS
    await crew.check()


OTHER_WORDS = "These are the words of another release."
HELD = ("developer", "dev_work", "words", 1, 3)
"""The call that a worker dies over: in the middle of a visit, with paid calls behind it."""
SETTINGS: dict[str, Any] = {
    "parallelism": 1,
    "roles": {role: {"enabled": False} for role in ("security", "docs", "devops")},
}


def _with_other_prompts(folder: Path) -> Path:
    """A copy of this release in which each file of prompts says something more."""
    for part in ("backend", "graphs", "migrations"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (folder / "backend" / "agents" / "prompts").glob("*.md"):
        file.write_text(f"{OTHER_WORDS}\n{file.read_text()}")
    return folder


@dataclass(frozen=True)
class KeepsOneWaiting(SmallCompany):
    """A company whose model does not answer one call, the first time."""

    held: list[Any] = field(default_factory=list)

    def __call__(self, body: dict[str, Any], headers: Mapping[str, str]) -> Reply:
        """Answer as always but once."""
        if position_of(headers) != HELD or self.held:
            return super().__call__(body, headers)
        self.held.append(HELD)
        return super().__call__(body, headers).after(3600)


def _told_in_other_words(requests: Sequence[Received]) -> Counter[bool]:
    """How many requests showed their model what the other release's files say, and how many did not."""
    return Counter(OTHER_WORDS in json.dumps(request.json["messages"]) for request in requests)


async def test_a_worker_with_other_prompt_files_takes_a_run_over_and_goes_on_in_the_words_that_it_began_with(
    hire: Callable[..., Firm], tmp_path: Path
) -> None:
    company = KeepsOneWaiting()
    firm = hire(company)
    run_id = await firm.begin(**SETTINGS)
    worker = firm.start()
    await firm.until(lambda: bool(company.held))
    worker.kill()
    await firm.let_leases_end()

    folder = _with_other_prompts(tmp_path / "other")
    environment = {**firm.environment, "PYTHONPATH": str(folder)}
    with (tmp_path / "other.log").open("wb") as log:
        program = [sys.executable, "-m", "backend.worker.app"]
        other = subprocess.Popen(program, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        await firm.ended(run_id)
        before = len(firm.server.requests)
        newer = await firm.begin(**SETTINGS)
        await firm.ended(newer)
    finally:
        other.kill()
        other.wait()
    log_of_other = (tmp_path / "other.log").read_text()[-6000:]
    assert set(await firm.query("SELECT status FROM project_runs")) == {("COMPLETED",)}, log_of_other

    asked = Counter(position_of(request.headers) for request in firm.server.requests[:before])
    again = {place: times for place, times in asked.items() if times > 1}
    assert again == {HELD: 2}, "only the call that was in flight is made again"
    assert _told_in_other_words(firm.server.requests[:before]) == {False: before}
    assert _told_in_other_words(firm.server.requests[before:]) == {True: len(firm.server.requests) - before}
    pinned = dict(await firm.query("SELECT id, prompts::text FROM project_runs"))
    own = installed_prompts().hashes
    assert json.loads(pinned[run_id]) == own
    assert json.loads(pinned[newer]).keys() == own.keys()
    assert not set(json.loads(pinned[newer]).values()) & set(own.values())
    hashes = dict(await firm.query("SELECT run_id, array_agg(DISTINCT prompt_hash) FROM model_calls GROUP BY 1"))
    assert set(hashes[run_id]) <= {installed_prompts().prompt_hash(name) for name in own}
    assert not set(hashes[run_id]) & set(hashes[newer])
    numbers.report("deploy with other prompts", 1, 1, "kills", calls=before, calls_made_again=len(again))
    await firm.check()
