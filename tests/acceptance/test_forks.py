"""A fork over real git and a real worker: it delivers to a branch of its own, and the original's result stays."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import partial
from uuid import UUID

from backend.adapters.db import forking
from backend.engine.loader import Graphs
from backend.operations import comparisons, forks, repositories, runs
from tests.acceptance.firm import Firm


async def _fork(firm: Firm, run_id: UUID, at: UUID) -> UUID:
    place = forks.Place(Graphs().find, lambda config, brief: [], partial(repositories.branch_at, firm.home))
    patch = {"security": {"gate": "warn"}}
    async with firm.sessions.begin() as session:
        made = await forks.fork(session, run_id, checkpoint_id=at, patch=patch, place=place, by="ada")
        return made.id


def _git(firm: Firm, project: UUID, *words: str) -> str:
    command = ["git", f"--git-dir={firm.home}/repositories/{project}.git", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


async def test_a_fork_delivers_to_its_own_branch_and_leaves_the_original_alone(hire: Callable[..., Firm]) -> None:
    firm = hire()
    firm.start()
    parent = await firm.begin()
    await firm.becomes(parent, "COMPLETED")
    project = await firm.one("project_id", parent)
    before, refs = _git(firm, project, "rev-parse", "main"), _git(firm, project, "show-ref")
    async with firm.sessions() as session:
        kept = await forking.ids_of(session, parent)
    early, late = kept[-2], kept[len(kept) // 2]
    for at, branch in ((late, "fork/2"), (early, "fork/3")):
        made = await _fork(firm, parent, at)
        await firm.becomes(made, "COMPLETED")
        assert _git(firm, project, "rev-parse", "main") == before
        assert set(refs.splitlines()) <= set(_git(firm, project, "show-ref").splitlines())
        listed = _git(firm, project, "ls-tree", "-r", "--name-only", branch)
        assert listed == _git(firm, project, "ls-tree", "-r", "--name-only", "main")
        assert await firm.one("model_calls", made) < await firm.one("model_calls", parent)
        assert (await firm.query("SELECT * FROM v_ledger_check")) == []
    await firm.check()
    async with firm.sessions() as session:
        pair = [await runs.get(session, found) for found in (parent, made)]
        compared = await comparisons.of_runs(session, *pair, home=firm.home)
    first, second = compared["runs"]
    assert (compared["no_diff"], compared["diff"], compared["diff_stat"]["files"]) == (None, "", 0)
    assert first["tests"] == second["tests"]
    assert first["tests"]["passed"] > first["tests"]["failed"] == 0
    assert first["tasks"] == second["tasks"] == {"DONE": 3}
    assert float(second["spent"]["usd"]) < float(first["spent"]["usd"])
    assert {gate["gate"] for gate in first["gates"]} >= {"qa", "security"}
