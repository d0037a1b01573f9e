"""The graph of the company with real git, sandbox, tools and checks; only the replies are written beforehand."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest

from backend.adapters.checks.program import ProgramChecks
from backend.domain.config import RunConfig
from backend.domain.ports import StepFailed
from tests.acceptance.small_company import BRIEF, SmallCompany, approve, checking, config, module, send_back, task
from tests.acceptance.stage import Stage, call, stage


async def begin(home: Path, company: SmallCompany, settings: RunConfig | None = None) -> Stage:
    return await stage(home, company, BRIEF, settings or config(), ProgramChecks)


async def text(run: Stage, path: str) -> str | None:
    return await run.workspace.read(run.state["head"], path)


def bodies(run: Stage, kind: str) -> str:
    return "\n".join(effect["body"] for effect in run.of("add_comment") if effect["comment_type"] == kind)


async def test_a_brief_becomes_a_tested_repository(tmp_path: Path) -> None:
    run = await begin(tmp_path, SmallCompany())
    assert await run.play() == "COMPLETED"
    assert run.tasks() == {"hello": "DONE", "bye": "DONE"}
    assert run.verdicts("qa") == ["pass"]
    assert run.verdicts("security") == run.verdicts("docs") == run.verdicts("deploy") == ["off"]
    assert sorted(await run.workspace.files(run.state["head"]))[-2:] == ["tests/test_bye.py", "tests/test_hello.py"]
    assert await run.workspace.prepare(run.facts.config.workspace) == run.state["head"]
    assert {artifact["path"] for artifact in run.of("record_artifact")} >= {"hello.py", "tests/test_bye.py"}
    (end,) = run.of("end_run")
    assert "not judged, because switched off: deploy, docs, security" in end["reason"]


async def test_without_a_lead_changes_are_merged_and_the_gate_says_so(tmp_path: Path) -> None:
    run = await begin(tmp_path, SmallCompany(), config(off=("lead", "security", "docs", "devops")))
    assert await run.play() == "COMPLETED"
    assert set(run.verdicts("review")) == {"off"}


@pytest.mark.parametrize("role", ["pm", "developer"])
async def test_a_company_without_product_manager_or_developer_refuses_to_work(tmp_path: Path, role: str) -> None:
    run = await begin(tmp_path, SmallCompany(), config(off=(role,)))
    with pytest.raises(StepFailed, match=f"The role {role} is switched off"):
        await run.play()


async def test_questions_of_the_analysis_are_answered_before_the_plan(tmp_path: Path) -> None:
    company = SmallCompany()
    company.questions = [{"question": "Which language?", "options": ["English", "Danish"], "default": "English"}]
    run = await begin(tmp_path, company, config(people={"may_ask": True}))
    assert await run.play() == "WAITING"
    assert run.open_questions() == ["clarify-1"]
    run.answer("clarify-1", "Danish, please")
    assert await run.play() == "COMPLETED"
    asked = next(request for position, request, _ in run.requests if position.node == "pm_create_tasks")
    assert "Danish, please" in str(asked.messages[1]["content"])


async def test_a_plan_is_changed_and_then_approved(tmp_path: Path) -> None:
    run = await begin(tmp_path, SmallCompany(), config(people={"approve_plan": True}))
    assert await run.play() == "WAITING"
    assert run.tasks() == {}
    run.answer("plan-1", "Leave the farewell out.")
    assert await run.play() == "WAITING"
    asked = [request for position, request, _ in run.requests if position.node == "pm_create_tasks"]
    assert "Leave the farewell out." in str(asked[1].messages[1]["content"])
    run.answer("plan-2", "approve")
    assert await run.play() == "COMPLETED"
    assert run.verdicts("plan") == ["fix", "pass"]


async def test_a_rejected_plan_stops_the_run_and_a_retry_plans_again(tmp_path: Path) -> None:
    run = await begin(tmp_path, SmallCompany(), config(people={"approve_plan": True}))
    await run.play()
    run.answer("plan-1", "reject: too expensive")
    assert await run.play() == "STOPPED_USER"
    assert "too expensive" in run.of("end_run")[0]["reason"]
    assert await run.play() == "WAITING"
    run.answer("plan-2", "approve")
    assert await run.play() == "COMPLETED"


async def test_a_change_asked_for_before_the_release_passes_every_gate(tmp_path: Path) -> None:
    company = SmallCompany()
    company.changes["change"] = lambda visit: [module("thanks", "thanks")]
    company.tests = lambda visit: (
        [checking("hello", "hello", "hello#1"), checking("bye", "bye", "bye#1")]
        if visit == 1
        else [checking("thanks", "thanks", "change-1#1")]
    )
    run = await begin(tmp_path, company, config(people={"approve_release": True}))
    assert await run.play() == "WAITING"
    run.answer("release-1", "Say thanks, too.")
    assert await run.play() == "WAITING"
    assert run.tasks()["change-1"] == "DONE"
    assert run.verdicts("qa") == ["pass", "pass"]
    run.answer("release-2", "approve")
    assert await run.play() == "COMPLETED"
    assert await text(run, "thanks.py") is not None


async def test_changes_in_conflict_become_a_task(tmp_path: Path) -> None:
    company = SmallCompany()
    both = {"hello": "hello", "bye": "bye"}
    company.tasks = [task("hello"), task("bye")]
    for key, word in both.items():
        company.changes[key] = lambda visit, key=key, word=word: [
            module(key, word),
            call(
                "write_file",
                path="pyproject.toml",
                content=f"# for {key}\n[tool.pytest.ini_options]\npythonpath = ['.']\n",
            ),
        ]
    company.changes["conflict"] = lambda visit: [module("bye", "bye")]
    run = await begin(tmp_path, company)
    assert await run.play() == "COMPLETED"
    assert run.tasks() == {"hello": "DONE", "bye": "DONE", "conflict-bye-1": "DONE"}
    assert "pyproject.toml" in bodies(run, "merge")
    asked = next(request for position, request, _ in run.requests if position.task_key == "conflict-bye-1")
    assert "# for bye" in str(asked.messages[1]["content"])


async def test_a_developer_who_asks_gets_an_answer(tmp_path: Path) -> None:
    company = SmallCompany()
    question = call("ask_human", question="Hello or hi?", options=["hello", "hi"])
    made = company.changes["hello"]
    company.changes["hello"] = lambda visit: [question] if visit == 1 else made(visit)
    run = await begin(tmp_path, company, config(people={"may_ask": True}))
    assert await run.play() == "WAITING"
    assert run.tasks()["hello"] == "BLOCKED"
    (asked,) = run.of("ask_question")
    assert (asked["text"], asked["task"], asked["options"]) == ("Hello or hi?", "hello", ["hello", "hi"])
    run.answer(asked["key"], "hello it is")
    assert await run.play() == "COMPLETED"
    again = [request for position, request, _ in run.requests if position.task_key == "hello" and position.ordinal == 1]
    assert "hello it is" in str(again[-2].messages[1]["content"]) + str(again[-1].messages[1]["content"])


async def test_a_change_that_is_never_good_enough_fails_the_run_and_a_retry_goes_on_with_it(tmp_path: Path) -> None:
    company = SmallCompany()
    company.review = lambda key, visit: send_back("hello.py") if key == "hello" and visit < 4 else approve()
    run = await begin(tmp_path, company, config(review={"max_iterations": 2}))
    assert await run.play() == "FAILED"
    assert run.tasks()["hello"] == "BLOCKED"
    assert run.tasks()["bye"] == "DONE"
    assert run.verdicts("review").count("fail") == 1
    assert await run.play() == "COMPLETED"
    assert run.tasks() == {"hello": "DONE", "bye": "DONE"}


async def test_a_change_may_be_accepted_with_its_findings(tmp_path: Path) -> None:
    company = SmallCompany()
    company.review = lambda key, visit: send_back("hello.py") if key == "hello" else approve()
    run = await begin(tmp_path, company, config(review={"max_iterations": 1, "on_exhausted": "accept"}))
    assert await run.play() == "COMPLETED"
    assert "accepted with findings: review" in run.of("end_run")[0]["reason"]


async def test_a_developer_who_changes_nothing_fails_the_run(tmp_path: Path) -> None:
    company = SmallCompany()
    company.changes["bye"] = lambda visit: [call("list_files", path=".")]
    run = await begin(tmp_path, company, config(review={"max_iterations": 1, "on_exhausted": "accept"}))
    assert await run.play() == "FAILED"
    assert "changed nothing" in run.of("end_run")[0]["reason"]


async def test_what_qa_finds_becomes_a_bug_task(tmp_path: Path) -> None:
    company = SmallCompany()
    company.changes["bye"] = lambda visit: [module("bye", "by")]
    company.changes["bug"] = lambda visit: [call("str_replace", path="bye.py", old_str="'by'", new_str="'bye'")]
    run = await begin(tmp_path, company)
    assert await run.play() == "COMPLETED"
    assert run.tasks()["bug-1-1"] == "DONE"
    assert run.verdicts("qa") == ["fix", "pass"]
    found = [effect for effect in run.of("record_finding") if effect["source"] == "qa"]
    assert [effect["path"] for effect in found] == ["tests/test_bye.py"]


@pytest.mark.parametrize(("exhausted", "status"), [("fail", "FAILED"), ("accept", "COMPLETED")])
async def test_tests_that_stay_red_fail_the_run_or_are_accepted(tmp_path: Path, exhausted: str, status: str) -> None:
    company = SmallCompany()
    company.changes["bye"] = lambda visit: [module("bye", "by")]
    company.changes["bug"] = lambda visit: [call("write_file", path="notes.txt", content="I tried.\n")]
    run = await begin(tmp_path, company, config(qa={"max_iterations": 1, "on_exhausted": exhausted}))
    assert await run.play() == status
    assert run.verdicts("qa") == ["fix", exhausted]


async def test_a_wrong_test_is_corrected_by_qa_and_not_by_the_developer(tmp_path: Path) -> None:
    company = SmallCompany()
    company.tests = lambda visit: [
        checking("hello", "hello", "hello#1"),
        checking("bye", "goodbye" if visit == 1 else "bye", "bye#1"),
    ]
    wrong = checking("bye", "bye", "bye#1")
    company.changes["bug"] = lambda visit: [wrong, call("write_file", path="notes.txt", content="The test is wrong.\n")]
    run = await begin(tmp_path, company, config(review={"max_iterations": 0}, qa={"max_iterations": 2}))
    assert await run.play() == "FAILED"
    assert "tests that QA has accepted" in run.of("end_run")[0]["reason"]
    company = SmallCompany()
    company.tests = lambda visit: [
        checking("hello", "hello", "hello#1"),
        checking("bye", "goodbye" if visit == 1 else "bye", "bye#1"),
    ]
    company.changes["bug"] = lambda visit: [call("write_file", path="notes.txt", content="The test is wrong.\n")]
    run = await begin(tmp_path / "again", company)
    assert await run.play() == "COMPLETED"
    assert run.verdicts("qa") == ["fix", "pass"]


async def test_qa_cannot_change_the_code(tmp_path: Path) -> None:
    company = SmallCompany()
    company.changes["bye"] = lambda visit: [module("bye", "by")]
    company.changes["bug"] = lambda visit: [module("bye", "bye")]
    tests = company.tests
    company.tests = lambda visit: [*tests(visit), module("bye", "bye")]
    run = await begin(tmp_path, company)
    assert await run.play() == "COMPLETED"
    assert run.verdicts("qa") == ["fix", "pass"]


LEAK = call("write_file", path="key.py", content='API_TOKEN = "9f1c4e7a2b8d6053e4c7"\n')
SAFETY: dict[str, Any] = {"off": ("docs", "devops", "qa"), "checks": {"scanners": ["secret-rules"]}}


def leaking(mends: bool) -> SmallCompany:
    company = SmallCompany()
    made = company.changes["bye"]
    company.changes["bye"] = lambda visit: [*made(visit), LEAK]
    mended = call("write_file", path="key.py", content='import os\n\nAPI_TOKEN = os.environ["API_TOKEN"]\n')
    tries = count()
    company.changes["security"] = lambda visit: [mended if mends else module("other", f"try {next(tries)}")]
    return company


async def test_a_secret_in_the_code_is_blocked_until_it_is_gone(tmp_path: Path) -> None:
    run = await begin(tmp_path, leaking(mends=True), config(**SAFETY))
    assert await run.play() == "COMPLETED"
    assert run.verdicts("security") == ["fix", "pass"]
    assert run.tasks()["security-1-1"] == "DONE"
    asked = next(request for position, request, _ in run.requests if position.task_key == "security-1-1")
    assert "Remove it." in str(asked.messages[1]["content"])


async def test_a_secret_that_stays_stops_the_run_and_a_waiver_lets_a_retry_through(tmp_path: Path) -> None:
    run = await begin(tmp_path, leaking(mends=False), config(security={"max_iterations": 1}, **SAFETY))
    assert await run.play() == "STOPPED_SECURITY"
    assert run.verdicts("security") == ["fix", "stop"]
    assert await run.workspace.prepare(run.facts.config.workspace) == run.state["base"]
    (found,) = {effect["fingerprint"] for effect in run.of("record_finding") if effect["source"] == "security"}
    assert await run.play() == "STOPPED_SECURITY", "a retry has rounds and tasks of its own"
    assert {"security-1-1", "security-2-1"} <= run.tasks().keys()
    run.waived = frozenset({found})
    assert await run.play() == "COMPLETED"


async def test_a_gate_that_only_warns_records_and_lets_through(tmp_path: Path) -> None:
    run = await begin(tmp_path, leaking(mends=False), config(security={"gate": "warn"}, **SAFETY))
    assert await run.play() == "COMPLETED"
    assert [effect["severity"] for effect in run.of("record_finding")] == ["HIGH"]


async def test_documents_that_name_what_is_not_there_are_findings(tmp_path: Path) -> None:
    company = SmallCompany()
    readme = call("write_file", path="README.md", content="# Words\n\nSee `nowhere.py`.\n")
    company._docs_finalize = lambda request, position: (  # type: ignore[method-assign] # a reply of this test
        [readme] if position.ordinal == 1 else [call("submit", summary="Written.")]
    )
    run = await begin(tmp_path, company, config(off=("devops", "security", "qa")))
    assert await run.play() == "COMPLETED"
    assert run.verdicts("docs") == ["accept"]
    assert ["nowhere.py" in effect["message"] for effect in run.of("record_finding")] == [True]


@pytest.mark.parametrize(
    ("dockerfile", "status"), [("FROM debian\nUSER root\n", "COMPLETED"), ("FORM debian\n", "FAILED")]
)
async def test_deployment_files_are_judged_by_their_linters(tmp_path: Path, dockerfile: str, status: str) -> None:
    company = SmallCompany()
    company._devops_prepare = lambda request, position: (  # type: ignore[method-assign] # a reply of this test
        [call("write_file", path="Dockerfile", content=dockerfile)]
        if position.ordinal == 1
        else [call("submit", summary="Written.")]
    )
    run = await begin(tmp_path, company, config(off=("docs", "security", "qa")))
    assert await run.play() == status
    assert run.verdicts("deploy") == ["accept" if status == "COMPLETED" else "fail"]
    assert any("hadolint" in effect["scanner"] for effect in run.of("record_finding"))


async def test_criteria_without_a_test_stand_in_the_report(tmp_path: Path) -> None:
    company = SmallCompany()
    company.tests = lambda visit: [checking("hello", "hello", "hello#1")]
    run = await begin(tmp_path, company)
    assert await run.play() == "COMPLETED"
    assert run.of("end_run")[0]["report"]["facts"]["criteria_without_a_test"] == ["bye#1"]


@pytest.mark.parametrize("tasks", [[], [task("a", depends_on=["a"])], [task(f"t{at}") for at in range(500)]])
async def test_a_plan_that_cannot_be_worked_on_fails_the_run(tmp_path: Path, tasks: list[dict[str, Any]]) -> None:
    company = SmallCompany()
    company.tasks = tasks
    run = await begin(tmp_path, company)
    with pytest.raises(StepFailed) as failed:
        await run.play()
    assert failed.value.replies_at_fault


async def test_the_same_run_asks_the_same_questions(tmp_path: Path) -> None:
    first = await begin(tmp_path / "first", SmallCompany())
    other = await begin(tmp_path / "other", SmallCompany())
    for run in (first, other):
        assert await run.play() == "COMPLETED"

    def asked(run: Stage) -> list[Any]:
        found = []
        for position, request, _ in run.requests:
            words = [message if message["role"] != "tool" else message["tool_call_id"] for message in request.messages]
            found.append((position.node, position.visit, position.ordinal, position.task_key or "", words))
        return sorted(found, key=lambda entry: entry[:4])

    assert asked(first) == asked(other)
