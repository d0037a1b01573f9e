"""The command line as people and CI use it: real processes, a real worker and api, a real model endpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from backend.agents.prompt import installed
from backend.cli.follow import EXIT_CODES
from backend.cli.place import person
from backend.domain.run import ENDED
from backend.operations import invariants
from tests.acceptance.desk import Desk
from tests.openai_server import OpenAIServer, Reply, error, text
from tests.patience import PATIENCE
from tests.small_company import BRIEF, SmallCompany

ROOT = Path(__file__).parents[2]
COMPANY = [sys.executable, "-c", "from backend.cli import main; main()"]


@dataclass
class Shell:
    """Runs the command line with an environment of its own."""

    desk: Desk
    environment: dict[str, str]
    cwd: Path

    def run(self, *arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[str]:
        return self.desk.run(arguments, environment=self.environment, cwd=self.cwd, stdin=stdin)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*COMPANY, *arguments], env=self.environment, cwd=self.cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return kept | {"COMPANY_HOME": str(home), "PYTHONPATH": str(ROOT)} | more


@pytest.fixture
def alone(desk: Desk, tmp_path: Path) -> Shell:
    """A shell in which no company runs."""
    return Shell(desk, environment(tmp_path / "home"), tmp_path)


def answers(request: dict[str, Any]) -> Reply:
    """What the models say; the model's name decides how well they do."""
    model = request["model"]
    if model == "broken":
        return error(401, "no such key")
    seconds = {"slow": 5, "still": 600}.get(model, 0.01)
    return text(f"answer to {request['messages'][-1]['content']}").billed(100, 20).after(seconds)


@dataclass
class Up:
    """A company that is up, and how to speak to it."""

    shell: Shell
    process: subprocess.Popen[bytes]
    url: str
    endpoint: OpenAIServer

    def settings(self, model: str = "scripted", **more: str) -> list[str]:
        pairs = {
            "graph": "chain",
            "models.default": model,
            "models.prices": json.dumps({model: {"input": 1, "output": 2}}),
            "models.providers.local.base_url": self.endpoint.base_url,
            "sandbox.level": "unsafe",
            **more,
        }
        return ["--template", "local", *(word for pair in pairs.items() for word in ("--set", "=".join(pair)))]

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=PATIENCE) as answer:
            body = answer.read().decode()
        return json.loads(body) if answer.headers["content-type"] == "application/json" else body


@pytest.fixture(scope="module")
def up(desk: Desk, tmp_path_factory: pytest.TempPathFactory, addresses: dict[str, str]) -> Iterator[Up]:
    """One company for the tests of this file: api and worker over a database of its own, with the graph `chain`."""
    folder = tmp_path_factory.mktemp("up")
    plugin = folder / "plugin" / "chain-1.dist-info"
    plugin.mkdir(parents=True)
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: chain\nVersion: 1\n")
    (plugin / "entry_points.txt").write_text("[company.graphs]\nchain = tests.acceptance.graphs:CHAIN\n")
    shell = Shell(
        desk,
        environment(folder / "home", PYTHONPATH=f"{ROOT}:{plugin.parent}", **addresses),
        folder,
    )
    with OpenAIServer(answers) as endpoint:
        process = shell.start("up", "--port", "0")
        assert process.stdout is not None
        first = process.stdout.readline().decode()
        while first and not first.startswith("The company works at"):
            first = process.stdout.readline().decode()
        assert first, "the company did not come up"
        yield Up(shell, process, first.split()[-1], endpoint)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=PATIENCE) == 0
        process.stdout.close()


@pytest.fixture(scope="module")
async def addresses(servers: Any, empty_database: Any) -> dict[str, str]:
    """The servers of the session, with an empty database of this file's own; `company up` migrates it."""
    with redis.Redis.from_url(servers.redis_url) as broker:
        broker.flushdb()  # what workers of other tests said of themselves
    return {"DATABASE_URL": await empty_database(), "REDIS_URL": servers.redis_url}


def test_help_imports_neither_database_nor_models_nor_servers() -> None:
    heavy = ("sqlalchemy", "langgraph", "celery", "fastapi", "openai", "pydantic", "redis")
    code = f"import backend.cli.app, sys; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_the_list_of_commands_says_of_each_what_it_does_in_whole_words(alone: Shell) -> None:
    done = alone.run("--help")
    cut = [line for line in done.stdout.splitlines()[1:] if line.endswith("...")]
    assert (done.returncode, cut) == (0, []), done.stdout
    assert alone.run("--version").stdout.startswith("company ")


def test_every_end_has_an_exit_code_of_its_own() -> None:
    codes = [EXIT_CODES[status] for status in ENDED]
    assert len(set(codes)) == len(codes)
    assert set(codes) == {0, 3, 4, 5, 6}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["run", ""], 2, "empty"),
        (["run", sys.executable], 2, "UTF-8"),
        (["run", "missing.rst"], 2, "no file missing.rst"),
        (["run", "."], 2, "is a directory"),
        (["run", "/dev/zero"], 2, "NUL"),
        (["run", "Build it, and build it well. " * 20], 1, "company up"),
        (["run", "A thing"], 1, "company up"),
        (["run", "A thing", "--set", "parallelism"], 2, "KEY=VALUE"),
        (["run", "A thing", "--budget-usd", "nan"], 2, "above 0"),
        (["run", "A thing", "--budget-usd", "0"], 2, "above 0"),
        (["run", "A thing", "--wait", "--key", ""], 2, "printable"),
        (["runs"], 1, "company up"),
        (["show", "last"], 1, "company up"),
        (["why", "README.md"], 2, "FILE:LINE"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(alone: Shell, arguments: list[str], code: int, says: str) -> None:
    done = alone.run(*arguments)
    assert (done.returncode, says in done.stderr) == (code, True), done
    assert "Traceback" not in done.stderr + done.stdout


def test_a_brief_with_binary_in_it_is_refused(alone: Shell, tmp_path: Path) -> None:
    (tmp_path / "brief.md").write_bytes(b"Build\x00me")
    assert "NUL" in alone.run("run", "brief.md").stderr
    assert "UTF-8" in alone.run("run", "-", stdin=b"\xff\xfe\x00").stderr
    assert "200,001 bytes" in alone.run("run", "-", stdin=b"x" * 200_001).stderr


def test_a_port_that_is_taken_is_named(up: Up, tmp_path: Path) -> None:
    done = Shell(up.shell.desk, up.shell.environment | {"COMPANY_HOME": str(tmp_path)}, tmp_path).run(
        "up", "--port", up.url.rsplit(":", 1)[1]
    )
    assert (done.returncode, "cannot be used" in done.stderr) == (1, True), done


def test_a_run_is_followed_to_its_end_and_found_again(up: Up) -> None:
    done = up.shell.run("run", "Build it.", "--wait", *up.settings())
    assert done.returncode == 0, done
    assert "COMPLETED" in done.stdout
    listed = json.loads(up.shell.run("runs", "--json").stdout)
    run_id = listed[0]["id"]
    shown = json.loads(up.shell.run("show", run_id[:13], "--json").stdout)
    assert (shown["status"], shown["tasks"], shown["spent"]["model_calls"]) == ("COMPLETED", {"DONE": 3}, 16)
    assert shown["pinned"] == {"graph": "chain", "graph_version": "1", "prompts": installed().hashes}
    watched = up.shell.run("watch", run_id, "--json")
    seqs = [json.loads(line)["seq"] for line in watched.stdout.splitlines()]
    assert (watched.returncode, seqs) == (0, list(range(1, len(seqs) + 1)))
    cost = up.get(f"/api/runs/{run_id}/cost")
    assert sum(line["calls"] for line in cost["by_node"]) == 16
    assert up.get(f"/api/runs/{run_id}/graph")["visits"]["work"] >= 6
    kept = up.get(f"/api/runs/{run_id}/checkpoints")
    assert [place["parent_id"] for place in kept[:-1]] == [place["checkpoint_id"] for place in kept[1:]]
    steps = [place["step"] for place in kept]
    assert (steps, len(steps) >= 3) == (sorted(steps, reverse=True), True)
    recorded = up.shell.run("record", run_id)
    assert (recorded.returncode, recorded.stdout.startswith("recording: 1")) == (0, True), recorded
    refused = up.shell.run("pause", run_id)
    assert (refused.returncode, "COMPLETED" in refused.stderr) == (1, True)


def test_the_database_is_looked_into_and_not_changed(up: Up) -> None:
    up.shell.run("run", "Build it.", "--wait", *up.settings())
    done = up.shell.run("sql", "--csv", "SELECT status, progress FROM v_run_overview ORDER BY created_at DESC LIMIT 1")
    assert (done.returncode, done.stdout.splitlines()) == (0, ["status,progress", "COMPLETED,100"]), done
    for statement, says in (("DELETE FROM findings", "read-only"), ("SELECT nonsense", "nonsense")):
        refused = up.shell.run("sql", statement)
        assert (refused.returncode, says in refused.stderr) == (1, True), refused


def test_json_output_of_a_run_is_json_alone(up: Up) -> None:
    done = up.shell.run("run", "Build it.", "--wait", "--json", *up.settings())
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, lines[-1]["status"], lines[0]["type"]) == (0, "COMPLETED", "run.created")


def test_the_figures_of_the_worker_reach_the_api(up: Up) -> None:
    up.shell.run("run", "Build it.", "--wait", *up.settings())
    until = time.monotonic() + PATIENCE
    found: set[str] = set()
    wanted = {"company_model_tokens_total", "company_node_seconds_count", "company_queue_age_seconds"}
    while not wanted <= found and time.monotonic() < until:
        found = {line.split("{")[0].split(" ")[0] for line in up.get("/metrics").splitlines() if line[:1] != "#"}
        time.sleep(0.5)
    assert wanted <= found
    assert len(up.get("/api/system")["workers"]) == 1


def test_a_run_stops_at_its_budget(up: Up) -> None:
    done = up.shell.run("run", "Build it.", "--wait", "--budget-tokens", "9000", *up.settings())
    assert (done.returncode, "STOPPED_BUDGET" in done.stdout) == (3, True), done


def test_a_run_that_holds_at_its_budget_goes_on_when_the_limit_is_raised(up: Up) -> None:
    options = up.settings(**{"budget.on_exceed": "pause"})
    done = up.shell.run("run", "Build it.", "--wait", "--budget-tokens", "9000", *options)
    assert done.returncode == 7, done
    shown = json.loads(up.shell.run("show", "--json").stdout)
    question = shown["question_list"][0]["id"]
    assert "company answer" in done.stdout
    refused = up.shell.run("answer", question, "plenty")
    assert (refused.returncode, "1.50 usd" in refused.stderr) == (2, True)
    assert up.shell.run("answer", question, "500000 tokens").returncode == 0
    assert up.shell.run("watch").returncode == 0
    assert up.shell.run("answer", question, "1 usd").returncode == 1


def test_a_run_waits_for_an_answer(up: Up) -> None:
    done = up.shell.run("run", "A question for you.", "--wait", *up.settings())
    assert (done.returncode, "Which colour?" in done.stdout) == (7, True), done
    question = json.loads(up.shell.run("show", "--json").stdout)["question_list"][0]["id"]
    assert up.shell.run("answer", question, "blue").returncode == 0
    assert up.shell.run("watch").returncode == 0
    answered = up.get(f"/api/questions/{question}")["answered_by"]
    assert (answered, answered.endswith(" (cli)")) == (person(), True), "an auditor reads who it was"


def test_a_run_fails_when_no_model_answers_and_can_be_retried(up: Up) -> None:
    done = up.shell.run("run", "Build it.", "--wait", *up.settings("broken"))
    assert done.returncode == 5, done
    assert up.shell.run("retry").returncode == 0
    assert up.shell.run("watch", "--after", "3").returncode == 5


def test_a_run_is_paused_resumed_and_stopped_while_it_works(up: Up) -> None:
    started = up.shell.run(
        "run", "Build it.", "--json", *up.settings("slow", **{"models.providers.local.stream": "true"})
    )
    run_id = json.loads(started.stdout)["run_id"]
    _until(up, run_id, "RUNNING")
    watching = up.shell.start("watch", run_id, "--tokens")
    assert watching.stdout is not None
    lines = iter(watching.stdout.readline, b"")
    assert any("│ answer to".encode() in line for line in lines), "what the models say is shown while they say it"
    assert up.shell.run("pause", run_id, "--now").returncode == 0
    _until(up, run_id, "PAUSED")
    assert (watching.wait(timeout=PATIENCE), watching.stdout.close()) == (7, None)
    assert up.shell.run("resume", run_id).returncode == 0
    _until(up, run_id, "RUNNING")
    assert up.shell.run("stop", run_id).returncode == 0
    assert up.shell.run("watch", run_id).returncode == 6


@pytest.mark.parametrize("words", [("watch",), ("run", "Build it.", "--wait")])
def test_who_stops_watching_leaves_the_run_as_it_is_and_hears_how_to_come_back(up: Up, words: tuple[str, ...]) -> None:
    if words == ("watch",):
        up.shell.run("run", "Build it.", *up.settings("still"))
    watching = up.shell.start(*words, *(up.settings("still") if "run" in words else ()))
    assert watching.stdout is not None
    said = watching.stdout.readline().decode()
    watching.send_signal(signal.SIGINT)
    said += watching.stdout.read().decode()
    assert (watching.wait(timeout=PATIENCE), "watch last` comes back to it." in said) == (130, True), said
    assert ("Aborted" in said, "Traceback" in said) == (False, False), said
    watching.stdout.close()
    assert json.loads(up.shell.run("show", "--json").stdout)["status"] in {"QUEUED", "RUNNING"}
    assert up.shell.run("stop").returncode == 0
    assert up.shell.run("watch").returncode == 6


def test_a_job_that_is_repeated_goes_on_with_the_run_that_it_started(up: Up) -> None:
    before, asked = len(json.loads(up.shell.run("runs", "--json").stdout)), len(up.endpoint.requests)
    options = up.settings()
    job = ("run", "Build it.", "--key", "job-41", "--wait", "--json", *options)
    killed = up.shell.start(*job)
    assert killed.stdout is not None
    run_id = json.loads(killed.stdout.readline())["run_id"]
    killed.kill()
    assert (killed.wait(timeout=PATIENCE), killed.stdout.close()) == (-signal.SIGKILL, None)
    at_once = [up.shell.start(*job) for _ in range(3)]
    said = [json.loads(one.communicate(timeout=PATIENCE)[0].splitlines()[-1]) for one in at_once]
    assert {(one["run_id"], one["status"]) for one in said} == {(run_id, "COMPLETED")}
    assert len(json.loads(up.shell.run("runs", "--json").stdout)) == before + 1
    assert len(up.endpoint.requests) == asked + 16, "what was paid for is not asked again"
    told = up.shell.run("run", "Build it.", "--key", "job-41", *options)
    assert (told.returncode, f"is completed: {run_id}" in told.stdout) == (0, True), told
    for other, differs in (
        (("run", "Build another.", *options), "brief"),
        (("run", "Build it.", *options, "--budget-usd", "1"), "settings"),
        (("run", "Build it."), "template"),
    ):
        refused = up.shell.run(*other, "--key", "job-41")
        assert (refused.returncode, f"with other {differs}" in refused.stderr) == (1, True), refused


def test_a_demo_in_a_company_that_is_up_points_to_its_port_however_it_ends(up: Up) -> None:
    demo = up.shell.start("demo")
    assert demo.stdout is not None
    said = demo.stdout.readline().decode()
    while said and not said.startswith("run "):
        said = demo.stdout.readline().decode()
    assert up.shell.run("stop").returncode == 0
    rest = demo.stdout.read().decode()
    linked = [line.split()[-1] for line in rest.splitlines() if line.startswith("  API ")]
    assert (demo.wait(timeout=PATIENCE), linked, "still up" in rest) == (6, [f"{up.url}/docs"], True), rest
    demo.stdout.close()


def _until(up: Up, run_id: str, status: str) -> None:
    until = time.monotonic() + PATIENCE
    while (seen := up.get(f"/api/runs/{run_id}")["status"]) != status:
        assert time.monotonic() < until, seen
        time.sleep(0.1)


def test_an_archive_of_a_run_without_commits_is_refused(up: Up) -> None:
    up.shell.run("run", "Build it.", "--wait", *up.settings())
    done = up.shell.run("archive")
    assert (done.returncode, "not committed anything" in done.stderr) == (1, True), done


def test_the_doctor_tells_of_every_part(up: Up) -> None:
    done = up.shell.run("doctor", "--json")
    names = {check["name"] for check in json.loads(done.stdout)}
    assert {"database", "broker", "sandbox", "scanners", "models"} <= names


def test_the_doctor_checks_every_invariant_when_asked_to_look_deep(up: Up) -> None:
    done = up.shell.run("doctor", "--deep", "--json")
    told = {check["name"]: (check["status"], check["sentence"]) for check in json.loads(done.stdout)}
    assert "database" in told
    assert all(told[invariant.name] == ("ok", invariant.sentence) for invariant in invariants.listed()), done.stdout


def test_migrating_twice_is_the_same_as_once(up: Up) -> None:
    for _ in range(2):
        done = up.shell.run("migrate")
        assert (done.returncode, "newest revision" in done.stdout) == (0, True), done


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_interrupted_says_so_and_leaves_nothing_running(alone: Shell, number: signal.Signals) -> None:
    demo = alone.start("demo")
    assert demo.stdout is not None
    said = demo.stdout.readline()
    while said and not said.startswith(b"gate "):
        said = demo.stdout.readline()
    demo.send_signal(number)
    rest = demo.stdout.read().decode()
    assert (demo.wait(timeout=PATIENCE), "Nothing is lost" in rest, "Traceback" in rest) == (130, True, False), rest
    demo.stdout.close()
    home = alone.environment["COMPANY_HOME"]
    running = [path for path in Path("/proc").glob("[0-9]*/cmdline") if home in _read(path)]
    assert [_read(path) for path in running] == []


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""  # it ended meanwhile


def test_a_credential_that_stays_in_the_code_ends_with_the_exit_code_of_security(alone: Shell) -> None:
    with OpenAIServer(SmallCompany(leaks=True)) as endpoint:
        settings = {
            "models.default": "scripted",
            "models.providers.local.base_url": endpoint.base_url,
            "security.max_iterations": "1",
        }
        pairs = [word for pair in settings.items() for word in ("--set", "=".join(pair))]
        done = alone.run("run", BRIEF, "--template", "local", "--wait", *pairs)
        assert (done.returncode, "STOPPED_SECURITY" in done.stdout) == (4, True), done
        shown = alone.run("show")
    assert (shown.returncode, "Open findings: 2 CRITICAL, 2 HIGH" in shown.stdout) == (0, True), shown
    line = next(line for line in shown.stdout.splitlines() if " CRITICAL aws-access-key  textstat/words.py:" in line)
    finding, reason = line.split()[0], ("--by", "ada", "--reason", "It is the key of an example.")
    refused = alone.run("waive", finding, *reason, "--until", "2001-01-01")
    assert (refused.returncode, "ends in the future" in refused.stderr) == (2, True), refused
    waived = alone.run("waive", finding, *reason, "--until", "2999-12-31")
    assert "aws-access-key in textstat/words.py passes until 2999-12-31, by ada." in waived.stdout, waived
