"""Bad input, as people and models really give it: a sentence that says what and what to do, and a true status.

Here is what needs a company: settings over the command line, databases that do not fit, and models that do not do their
part, through real workers. What a layer alone decides is tested there.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from backend.adapters.db import migrate
from backend.adapters.db.engine import Sessions
from backend.operations import runs, templates
from tests.acceptance.desk import Desk
from tests.acceptance.firm import Firm
from tests.openai_server import Reply, cut, empty_choices, endless, position_of, text, tool_calls
from tests.small_company import SmallCompany

ROOT = Path(__file__).parents[2]
Shell = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def shell(desk: Desk, tmp_path: Path, redis_url: str) -> Shell:
    """Runs the command line against named servers."""

    def run(*arguments: str, database: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            "PYTHONPATH": str(ROOT),
            "DATABASE_URL": database,
            "REDIS_URL": redis_url,
            "COMPANY_HOME": str(tmp_path / "home"),
            "OPENAI_API_KEY": "sk-not-a-real-key",
        }
        return desk.run(arguments, environment=environment, cwd=tmp_path)

    return run


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--template", "nonsense"], "nonsense"),
        (["--set", "graph=nonsense"], "There is no graph nonsense"),
        (["--set", "paralelism=3"], "parallelism"),
        (["--set", "roles.chef.model=gpt-4o"], "chef"),
        (["--set", "budget.usd=5 dollars"], "budget.usd must"),
        (["--set", "budget.seconds=1 hour"], "budget.seconds must"),
        (["--set", "budget.tokens=-1"], "budget.tokens must"),
        (["--set", "budget.tokens=99999999999999999999999"], "budget.tokens must"),
        (["--set", "budget.usd=.inf"], "budget.usd must"),
        (["--set", "budget.usd=0"], "budget.usd must"),
        (["--set", "sandbox.level=none"], "sandbox.level must"),
        (["--set", "workspace.remote=file:///etc", "--set", "workspace.source=remote"], "workspace.remote must"),
        (["--budget-tokens", "0"], "budget.tokens must"),
        (["--budget-usd", "-2"], "above 0"),
        (["--budget-usd", "1e30"], "above 0"),
    ],
)
async def test_settings_that_do_not_fit_are_refused_before_anything_is_made(
    shell: Shell, database_url: str, sessions: Sessions, options: list[str], says: str
) -> None:
    async with sessions.begin() as session:
        await templates.load_built_ins(session)
    done = shell("run", "A library that greets.", *options, database=database_url)
    assert (done.returncode in {1, 2}, says in done.stderr, "Traceback" in done.stderr) == (True, True, False), done
    connection = await asyncpg.connect(database_url)
    assert await connection.fetchval("SELECT count(*) FROM projects") == 0
    await connection.close()


async def test_a_database_of_a_newer_release_is_refused_and_left_as_it_is(shell: Shell, database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute("UPDATE alembic_version SET version_num = '9999'")
    done = shell("migrate", database=database_url)
    assert (done.returncode, "revision 9999" in done.stderr, "Traceback" in done.stderr) == (1, True, False), done
    assert await connection.fetchval("SELECT version_num FROM alembic_version") == "9999"
    await connection.close()


async def test_a_database_of_the_release_before_is_to_be_migrated_first(shell: Shell, database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute("UPDATE alembic_version SET version_num = '0001'; ALTER TABLE projects DROP COLUMN brief")
    await connection.close()
    done = shell("runs", database=database_url)
    assert (done.returncode, done.stdout) == (1, ""), done
    assert "stands at revision 0001, this release needs" in done.stderr
    assert "run `company migrate`" in done.stderr


async def test_a_release_goes_on_over_the_database_of_the_next_one_and_says_so(shell: Shell, database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute("UPDATE alembic_version SET version_num = '9999'")
    await connection.close()
    done = shell("runs", "--json", database=database_url)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done
    assert "revision 9999, which a newer release made" in done.stderr


async def test_a_worker_waits_until_its_database_is_migrated(hire: Callable[..., Firm]) -> None:
    firm = hire(SmallCompany())
    [(newest,)] = await firm.query("UPDATE alembic_version SET version_num = '0001' RETURNING $1::text", migrate.head())
    firm.start()
    await firm.until(lambda: "No run is taken yet" in firm.log())
    run_id = await firm.begin()
    assert await firm.one("status", run_id) == "QUEUED"
    await firm.query("UPDATE alembic_version SET version_num = $1", newest)
    await firm.becomes(run_id, "RUNNING")


async def test_who_starts_a_run_where_no_worker_is_hears_what_it_waits_for(
    shell: Shell, database_url: str, sessions: Sessions
) -> None:
    async with sessions.begin() as session:
        await templates.load_built_ins(session)
    done = shell("run", "A library that greets.", database=database_url)
    assert (done.returncode, "is queued" in done.stdout) == (0, True), done
    assert "No worker tells of itself. The run waits in the queue until one does." in done.stderr


@pytest.mark.parametrize(
    "address", ["nonsense", "mysql://a:hush-hush@host/x", "postgresql://a:hush-hush@host:99999999/x"]
)
def test_an_address_that_is_none_is_named_and_not_repeated(shell: Shell, address: str) -> None:
    done = shell("runs", database=address)
    assert (done.returncode, "DATABASE_URL" in done.stderr, "Traceback" in done.stderr) == (1, True, False), done
    assert "hush" not in done.stderr


async def test_a_database_that_is_not_there_is_named(shell: Shell, database_url: str) -> None:
    done = shell("runs", database=database_url + "_missing")
    assert (done.returncode, "does not exist" in done.stderr, "Traceback" in done.stderr) == (1, True, False), done


def _planned(**dependencies: list[str]) -> Reply:
    tasks = [
        {"key": key, "title": f"Do {key}", "acceptance_criteria": [f"{key} works"], "depends_on": needed}
        for key, needed in dependencies.items()
    ]
    return tool_calls(("plan", {"approach": "One by one.", "tasks": tasks}))


@dataclass(frozen=True)
class Spoilt:
    """A small company in which one node's models always give the same bad reply."""

    node: str
    reply: Reply

    def __call__(self, body: dict[str, Any], headers: Mapping[str, str]) -> Reply:
        place = position_of(headers)
        return self.reply if place is not None and place[1] == self.node else SmallCompany()(body, headers)


ANALYSE, PLAN, DEVELOP = "pm_analyze_requirements", "pm_create_tasks", "dev_work"


@pytest.mark.parametrize(
    "spoilt",
    [
        pytest.param(Spoilt(ANALYSE, text("I would rather talk about it.")), id="prose"),
        pytest.param(Spoilt(ANALYSE, text("")), id="nothing"),
        pytest.param(Spoilt(ANALYSE, empty_choices()), id="no choice"),
        pytest.param(Spoilt(ANALYSE, tool_calls(("analysis", '{"summary": "Count wo'))), id="cut JSON"),
        pytest.param(Spoilt(ANALYSE, tool_calls(("analysis", {"requirements": 7}))), id="wrong schema"),
        pytest.param(Spoilt(PLAN, _planned(a=["b"], b=["a"])), id="plan with a cycle"),
        pytest.param(Spoilt(PLAN, _planned(a=["nowhere"])), id="plan with a missing dependency"),
        pytest.param(Spoilt(PLAN, tool_calls(("plan", {"approach": "None.", "tasks": []}))), id="plan without tasks"),
        pytest.param(Spoilt(DEVELOP, text("Done!")), id="developer talks"),
        pytest.param(Spoilt(DEVELOP, tool_calls(("list_files", {}))), id="developer repeats for ever"),
        pytest.param(
            Spoilt(DEVELOP, tool_calls(("write_file", {"path": "../../../../escaped.py", "content": "x = 1\n"}))),
            id="developer writes outside",
        ),
    ],
)
async def test_a_model_that_does_not_do_its_part_fails_the_run_in_a_sentence_and_is_paid_for(
    hire: Callable[..., Firm], spoilt: Spoilt
) -> None:
    firm = hire(spoilt)
    run_id = await firm.begin()
    firm.start()
    await firm.ended(run_id)
    assert await firm.one("status", run_id) == "FAILED", await firm.explain(run_id)
    said = str(await firm.one("error", run_id))
    assert said.endswith("."), said
    assert "Traceback" not in said
    assert await firm.one("spent_usd", run_id) > 0
    assert not list(firm.home.parent.rglob("escaped.py"))
    await firm.check()


@pytest.mark.parametrize(
    "reply", [endless(), cut(), text("too late").after(60)], ids=["endless", "broken off", "silent"]
)
async def test_a_model_that_never_comes_to_an_end_is_given_up_and_a_retry_goes_on(
    hire: Callable[..., Firm], sessions: Sessions, reply: Reply
) -> None:
    spoilt = {"now": True}

    def script(body: dict[str, Any], headers: Mapping[str, str]) -> Reply:
        return reply if spoilt["now"] else SmallCompany()(body, headers)

    firm = hire(script)
    run_id = await firm.begin(
        models={
            "provider": "loopback", "default": "scripted", "prices": {"scripted": {"input": 1, "output": 2}},
            "providers": {"loopback": {"base_url": firm.server.base_url, "timeout_seconds": 10, "retries": 0}},
        }
    )  # fmt: skip
    firm.start()
    await firm.ended(run_id)
    assert await firm.one("status", run_id) == "FAILED", await firm.explain(run_id)
    assert str(await firm.one("error", run_id)).endswith(".")
    await firm.check()
    spoilt["now"] = False
    async with sessions.begin() as session:
        await runs.retry(session, run_id, by="ada")
    await firm.ended(run_id)
    assert await firm.one("status", run_id) == "COMPLETED", await firm.explain(run_id)
