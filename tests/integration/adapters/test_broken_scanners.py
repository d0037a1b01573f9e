"""Scanners that break: each one's program is replaced by a real one that answers, and then goes wrong.

What it answers is what its adapter takes for a clean bill; only how the program ended tells the two apart.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

import pytest

from backend.adapters.checks.program import ProgramChecks
from backend.adapters.sandbox import Sandbox, plan
from backend.adapters.scanners.found import installed
from backend.adapters.workspace import GitWorkspace
from backend.domain import gates
from backend.domain.config import ChecksConfig, RunConfig, SandboxConfig, WorkspaceConfig
from backend.domain.ports import ScannerRun
from backend.domain.role import Role

PYTHON = sys.executable
FLOOD = f"exec {PYTHON} -I -S -c 'import os\nwhile True: os.write(1, bytes(1_000_000))'"
FAULTS = {
    "dies": (f"exec {PYTHON} -I -S -c 'import ctypes; ctypes.string_at(0)'", "died of SIGSEGV"),
    "hangs": ("exec sleep 600", "killed at the limit of time"),
    "floods": (FLOOD, "killed at the limit of output"),
    "answers by half": ("exit 0", "answer that can be read"),
}
"""What a program does once it has answered, and what the company says of it."""


@dataclass(frozen=True)
class Case:
    """A scanner, a word of its program's command line, what it looks at, and its answer that all is well."""

    option: str
    program: str
    path: str
    body: str
    answer: str
    shown: str = ""
    """The scanner's name in the report, where it is another than in the configuration."""


WORKFLOW = "on: push\njobs:\n  t:\n    runs-on: ubuntu-latest\n    steps:\n      - run: 'true'\n"
COMPOSE = "services:\n  shop:\n    build: .\n"
SCANNERS = (
    Case("bandit", "-m bandit", "a.py", "X = 1\n", '{"errors": [], "metrics": {"a.py": {}}, "results": []}'),
    Case("detect-secrets", "detect_secrets_runner.py", "a.py", "X = 1\n", '{"scanned": 2, "found": []}'),
    Case("semgrep", "semgrep", "a.py", "X = 1\n", '{"errors": [], "paths": {"scanned": ["a.py"]}, "results": []}'),
    Case("dependencies", "-m pip_audit", "requirements.txt", "requests==2.32.4\n",
         '{"dependencies": [{"name": "requests", "version": "2.32.4", "vulns": []}]}'),
)  # fmt: skip
LINTERS = (
    Case("hadolint", "hadolint", "Dockerfile", "FROM python:3.12-slim\n", "[]"),
    Case("yamllint", "-m yamllint", "a.yml", "a: 1\n", "a.yml:1:1: [warning] a word (braces)\n"),
    Case("actionlint", "-m check_jsonschema", ".github/workflows/ci.yml", WORKFLOW, '{"status": "ok"}',
         "check-jsonschema (github-workflows)"),
    Case("actionlint", "actionlint", ".github/workflows/ci.yml", WORKFLOW, "[]"),
    Case("actionlint", "zizmor", ".github/workflows/ci.yml", WORKFLOW, "[]", "zizmor"),
    Case("compose", "-m check_jsonschema", "compose.yaml", COMPOSE, '{"status": "ok"}',
         "check-jsonschema (compose-spec)"),
    Case("compose", "docker", "compose.yaml", COMPOSE, "", "docker compose config"),
)  # fmt: skip


class Bench:
    """A machine on which one program is another: an interpreter of the test's own, with programs beside it."""

    def __init__(self, home: Path, sandbox: Sandbox) -> None:
        self.home = home
        self.sandbox = sandbox
        self.programs = home / "machine" / "bin"
        self.programs.mkdir(parents=True)

    def furnish(self, case: Case, ending: str, answer: str) -> None:
        """Put the program in place; like the real ones it answers on its output, or in the file that it is told."""
        answers = f'for word; do case "$word" in */out/*.json) printf %s \'{answer}\' > "$word";; esac; done'
        told = f'case "$*" in *" version "*) echo 2.40.0; exit 0;; esac\n{answers}\nprintf %s \'{answer}\'\n{ending}'
        name = "broken" if case.program.startswith("-m") or case.program.endswith(".py") else case.program
        self._write(name, told)
        self._write("python", f'case "$*" in *"{case.program}"*) exec "$0-broken" "$@";; esac\nexec {PYTHON} "$@"')
        (self.programs / "python-broken").symlink_to(name)

    def _write(self, name: str, body: str) -> None:
        place = self.programs / name
        place.write_text(f"#!/bin/sh\n{body}\n")
        place.chmod(0o755)

    async def judge(self, case: Case, seconds: int) -> ScannerRun:
        """Let the one scanner look at its one file."""
        workspace = GitWorkspace(self.home, uuid4(), uuid4())
        tree = await workspace.checkout("dev", await workspace.prepare(WorkspaceConfig()))
        target = Path(tree.path) / case.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(case.body)
        commit = await workspace.commit(tree, author=Role.DEVELOPER, message="x", trailers={})
        limits = SandboxConfig(seconds=seconds, network=case.option == "semgrep")
        checks = ProgramChecks(workspace, self.sandbox, RunConfig(sandbox=limits), online=True)
        if case in SCANNERS:
            report = await checks.scan(commit, ChecksConfig(scanners=(case.option,)))  # type: ignore[arg-type]  # a literal
        else:
            report = await checks.lint_deploy(commit, ChecksConfig(linters=(case.option,)))  # type: ignore[arg-type]  # a literal
        return next(run for run in report.scanners if run.scanner == (case.shown or case.option))


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    sandbox = await Sandbox.detect(SandboxConfig(), commands=4)
    made = Bench(tmp_path, sandbox)
    monkeypatch.setattr(sys, "executable", str(made.programs / "python"))
    monkeypatch.setenv("PATH", f"{made.programs}{os.pathsep}{os.defpath}")
    plan.toolchains.cache_clear()
    yield made
    plan.toolchains.cache_clear()


def name_of(case: Case) -> str:
    return f"{case.option} by {case.program.removeprefix('-m ')}"


@pytest.fixture(params=[*SCANNERS, *LINTERS], ids=name_of)
def case(request: pytest.FixtureRequest, bench: Bench) -> Case:
    found: Case = request.param
    if found.option == "semgrep" and bench.sandbox.level == "landlock":
        pytest.skip("semgrep's rules need the network, which the sandbox level landlock cannot give")
    if bench.sandbox.level == "landlock" and os.geteuid() == 0:
        pytest.skip("the sandbox's user cannot read the test's programs below a directory that only root may enter")
    return found


async def test_a_scanner_whose_package_is_missing_is_named_and_fails_its_gate(bench: Bench) -> None:
    case = SCANNERS[0]
    bench.furnish(case, f"echo '{PYTHON}: No module named bandit' >&2; exit 1", "")
    run = await bench.judge(case, seconds=60)
    assert (run.failed or "").endswith("No module named bandit")
    assert gates.mendable(run) is False
    assert (installed("bandit"), installed("no-package-has-this-name")) == (version("bandit"), "")


async def test_a_program_that_answers_and_ends_is_believed(bench: Bench, case: Case) -> None:
    bench.furnish(case, "exit 0", case.answer)
    run = await bench.judge(case, seconds=60)
    assert (run.failed, run.files_scanned > 0) == (None, True)


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_program_that_breaks_fails_its_scanner_whatever_it_answered(
    bench: Bench, case: Case, fault: str
) -> None:
    half = fault == "answers by half"
    if half and not case.answer:
        pytest.skip("docker compose config says by its exit code alone that all is well")
    ending, said = FAULTS[fault]
    bench.furnish(case, ending, case.answer[: len(case.answer) * 2 // 3] if half else case.answer)
    run = await bench.judge(case, seconds=3 if fault == "hangs" else 60)
    assert run.failed is not None, run
    assert (said in run.failed, run.files_scanned) == (True, 0), run
