"""Runs of the company that end badly or wait: people do something, and the run goes on from there."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from backend.adapters.workspace.git import program
from backend.domain.config import RunConfig
from backend.domain.model import Choice, Exchange, ModelRequest, Position, Quote
from backend.engine.leftovers import Leftovers
from backend.engine.workbench import workbenches
from backend.operations import findings, questions, runs
from backend.settings import Settings
from tests.acceptance.small_company import BRIEF, SmallCompany, approve, module, send_back
from tests.acceptance.stage import call
from tests.integration.engine.conftest import Company

LEAK = call("write_file", path="key.py", content='API_TOKEN = "9f1c4e7a2b8d6053e4c7"\n')


class Spoken:
    """A transport whose model is a small company."""

    def __init__(self, company: SmallCompany) -> None:
        self.company = company

    def quote(self, choice: Choice, request: ModelRequest, config: RunConfig) -> Quote:
        return Quote(200, 100, Decimal("0.002"), "test")

    async def admit(self, choice: Choice, config: RunConfig, quote: Quote) -> None:
        return None

    async def send(
        self, choice: Choice, request: ModelRequest, position: Position, config: RunConfig, on_token: Any = None
    ) -> Exchange:
        said = self.company(request, position)
        return Exchange(
            said.content, said.tool_calls, said.finish_reason, said.usage, Decimal("0.001"), 0.01, "test-model", {}
        )


@pytest.fixture
async def small(company: Company, tmp_path: Path) -> AsyncIterator[tuple[Company, SmallCompany]]:
    people = SmallCompany()
    company.transport = Spoken(people)  # type: ignore[assignment] # the small company where the script stood
    company.executor = company.worker("small", lease_seconds=60)
    company.executor.workbenches = workbenches(Settings(home=tmp_path, redis_url=None))
    company.executor.leftovers = Leftovers(company.sessions, tmp_path)
    yield company, people


async def begin(company: Company, *off: str, **changes: Any) -> UUID:
    roles = {role: {"enabled": False} for role in off}
    run_id = await company.run(brief=BRIEF, graph="software_company", roles=roles, **changes)
    await company.executor.execute(run_id)
    return run_id


async def retry(company: Company, run_id: UUID) -> None:
    await company.operate(runs.retry, run_id, by="ada")
    await company.executor.execute(run_id)


async def status(company: Company, run_id: UUID) -> str:
    await company.check(run_id)
    return str((await company.row(run_id))["status"])


async def test_a_waiver_lets_a_run_that_security_stopped_go_on(small: tuple[Company, SmallCompany]) -> None:
    company, people = small
    made = people.changes["bye"]
    people.changes["bye"] = lambda visit: [*made(visit), LEAK]
    run_id = await begin(
        company, "qa", "docs", "devops", security={"max_iterations": 0}, checks={"scanners": ["secret-rules"]}
    )
    assert await status(company, run_id) == "STOPPED_SECURITY"
    found = await company.pool.fetchval("SELECT id FROM findings WHERE run_id = $1 AND source = 'security'", run_id)
    until = datetime.now(UTC) + timedelta(days=1)
    await company.operate(findings.waive, found, by="ada", reason="It is a sample.", until=until)
    await retry(company, run_id)
    assert await status(company, run_id) == "COMPLETED"


async def test_a_change_that_was_never_approved_is_taken_up_by_a_retry(small: tuple[Company, SmallCompany]) -> None:
    company, people = small
    people.review = lambda key, visit: send_back("hello.py") if key == "hello" and visit < 3 else approve()
    run_id = await begin(company, "qa", "docs", "devops", "security", review={"max_iterations": 1})
    assert await status(company, run_id) == "FAILED"
    await retry(company, run_id)
    assert await status(company, run_id) == "COMPLETED"
    tasks = await company.pool.fetch("SELECT key, status FROM tasks WHERE run_id = $1 ORDER BY key", run_id)
    assert [tuple(task) for task in tasks] == [("bye", "DONE"), ("hello", "DONE")]


async def test_a_developers_question_waits_for_its_answer(small: tuple[Company, SmallCompany]) -> None:
    company, people = small
    ask = call("ask_human", question="Hello or hi, what shall it be?")
    people.changes["hello"] = lambda visit: [ask] if visit == 1 else [module("hello", "hello")]
    run_id = await begin(company, "qa", "docs", "devops", "security", people={"may_ask": True})
    assert await status(company, run_id) == "WAITING"
    question = await company.pool.fetchval("SELECT id FROM questions WHERE run_id = $1", run_id)
    await company.operate(questions.answer, question, text="hello", by="ada")
    await company.executor.execute(run_id)
    assert await status(company, run_id) == "COMPLETED"


async def test_a_plan_may_be_answered_with_a_change(small: tuple[Company, SmallCompany]) -> None:
    company, _ = small
    run_id = await begin(company, "qa", "docs", "devops", "security", people={"approve_plan": True})
    for key, words in (("plan-1", "Leave the farewell for later."), ("plan-2", "approve")):
        assert await status(company, run_id) == "WAITING"
        question = await company.pool.fetchval("SELECT id FROM questions WHERE run_id = $1 AND key = $2", run_id, key)
        await company.operate(questions.answer, question, text=words, by="ada")
        await company.executor.execute(run_id)
    assert await status(company, run_id) == "COMPLETED"


def git(place: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(place), *words], check=True, capture_output=True, text=True).stdout.strip()


async def test_a_remote_that_does_not_take_the_work_fails_the_run_until_it_does(
    small: tuple[Company, SmallCompany], tmp_path: Path
) -> None:
    company, _ = small
    remote = tmp_path / "remote.git"
    place = {"push": True, "remote": str(remote), "branch": "result"}
    run_id = await begin(company, "qa", "docs", "devops", "security", workspace=place)
    assert await status(company, run_id) == "FAILED"
    row = await company.row(run_id)
    said = f"{row['error']} {row['final_report']}"
    assert "could not be pushed" in said
    assert "The work is on the local branch" in said
    local = tmp_path / "repositories" / f"{row['project_id']}.git"
    head = git(local, "rev-parse", "result")

    subprocess.run(["git", "init", "-q", "--bare", str(remote)], check=True)
    await retry(company, run_id)
    assert await status(company, run_id) == "COMPLETED"
    assert git(remote, "rev-parse", "result") == head
    told = await company.pool.fetch("SELECT payload ->> 'error' FROM events WHERE type = 'branch.pushed' ORDER BY seq")
    assert [error is None for (error,) in told] == [False, True]


async def test_an_ended_run_leaves_no_worktrees(small: tuple[Company, SmallCompany], tmp_path: Path) -> None:
    company, _ = small
    run_id = await begin(company, "qa", "docs", "devops", "security")
    assert await status(company, run_id) == "COMPLETED"
    assert list((tmp_path / "worktrees").iterdir()) == []


async def test_a_sweep_removes_what_ended_runs_left_and_nothing_else(company: Company, tmp_path: Path) -> None:
    leftovers = Leftovers(company.sessions, tmp_path)
    assert await leftovers.sweep() == 0
    on_its_way, ended, unknown = await company.run(), await company.run(), uuid4()
    await company.executor.execute(ended)
    places = [str(on_its_way), str(ended), str(unknown), ".gone-0123", "notes"]
    for name in places:
        (tmp_path / "worktrees" / name / "deep").mkdir(parents=True)
    assert await leftovers.sweep() == 2
    assert sorted(entry.name for entry in (tmp_path / "worktrees").iterdir()) == sorted([str(on_its_way), "notes"])
    assert await leftovers.sweep() == 0


async def test_a_machine_without_git_ends_a_run_before_anything_is_paid(
    small: tuple[Company, SmallCompany], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    company, _ = small
    program.cache_clear()
    with monkeypatch.context() as bare:
        bare.setenv("PATH", str(tmp_path))
        run_id = await begin(company)
    program.cache_clear()
    row = await company.row(run_id)
    assert (row["status"], row["stop_reason"], row["model_calls"]) == ("FAILED", "git_missing", 0)
    assert row["error"] == "There is no git program on this machine. Install git and start again."
    await retry(company, run_id)
    assert await status(company, run_id) == "COMPLETED"
