"""The tests gate for other languages: the project's own command, believed only with a report of its tests."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from backend.adapters.checks import junit
from backend.adapters.checks.pytest_gate import Verdict
from backend.adapters.checks.scratch import Scratch
from backend.adapters.sandbox import Sandbox
from backend.domain.config import SandboxConfig
from backend.domain.ports import TestCase

_PYTEST = re.compile(r"^(?:python3?(?:\.\d+)? +-m +)?(?:pytest|py\.test)(?: +(.*))?$")
_UNITTEST = re.compile(r"^python3?(?:\.\d+)? +-m +unittest(?: .*)?$")
_CANARY = "company.canary.test.mjs"


@dataclass(frozen=True, slots=True)
class Command:
    """How a project is tested: by the pytest gate with extra arguments, by node's own runner, by go, or as written."""

    kind: str
    line: str
    arguments: tuple[str, ...] = ()


def find(root: Path, configured: str | None) -> Command | None:
    """Return how to test a tree: as configured, else by its files; None where nothing tells."""
    if configured is not None:
        if match := _PYTEST.match(configured.strip()):
            return Command("pytest", configured, tuple(shlex.split(match[1] or "")))
        return Command("pytest" if _UNITTEST.match(configured.strip()) else "written", configured)
    if (root / "package.json").is_file() and not any(root.rglob("test_*.py")):
        script = _npm_script(root)
        return (
            Command("node", "node --test")
            if script and re.match(r"^node +--test\b", script)
            else Command("written", "npm test")
        )
    if (root / "go.mod").is_file():
        return Command("go", "go test -json ./...")
    return Command("pytest", "pytest") if any(root.rglob("*.py")) else None


def _npm_script(root: Path) -> str | None:
    try:
        script = json.loads((root / "package.json").read_text("utf-8"))["scripts"]["test"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return script if isinstance(script, str) else None


async def judge(command: Command, place: Scratch, sandbox: Sandbox, config: SandboxConfig) -> Verdict:
    """Run the command once and believe its report where it is whole."""
    verdict = Verdict(command.line)
    line = {"node": _node_line(place), "go": "go test -json ./..."}.get(command.kind, command.line)
    if command.kind == "node":
        await asyncio.to_thread(_plant, place.tree)
    result = await sandbox.run(
        line, root=place.root, cwd=place.tree, config=config, env={"JUNIT_XML": str(place.out / "junit.xml")}
    )
    verdict.result = result
    verdict.exit_code = result.exit_code
    if command.kind == "go":
        verdict.cases = _go_cases(result.stdout)
    else:
        verdict.cases = _junit_cases(junit.parse(place.read("junit.xml")), verdict)
    if command.kind == "node":
        _take_canary(verdict)
    _complain(verdict, config)
    return verdict


def _node_line(place: Scratch) -> str:
    report = shlex.quote(str(place.out / "junit.xml"))
    return f"exec node --test --test-reporter=junit --test-reporter-destination={report}"


def _plant(root: Path) -> None:
    body = "import test from 'node:test';\ntest('company canary', () => { throw new Error('canary'); });\n"
    (root / _CANARY).write_text(body)


def _take_canary(verdict: Verdict) -> None:
    """The canary must have failed, and the rest decides the exit code that the command would have had."""
    canary = [case for case in verdict.cases if case.id.endswith("company canary")]
    verdict.cases = [case for case in verdict.cases if case not in canary]
    if not canary or any(case.outcome == "passed" for case in canary) or verdict.exit_code == 0:
        verdict.reasons.append("The canary test that must fail did not fail.")
    elif all(case.outcome == "passed" for case in verdict.cases):
        verdict.exit_code = 0


def _junit_cases(reported: dict[tuple[str, str], junit.Verdict] | None, verdict: Verdict) -> list[TestCase]:
    if reported is None:
        verdict.reasons.append(
            "The command left no JUnit report, so nothing proves which tests ran. "
            "Let it write one to the path in the variable JUNIT_XML."
        )
        return []
    return [
        TestCase("::".join(filter(None, key)), _unless_file(key[1], said.outcome), said.seconds, said.message)
        for key, said in sorted(reported.items())
    ]


def _unless_file(name: str, outcome: str) -> str:
    """Node reports a file that ran no test as a test of its own that passed: that is a test that is missing."""
    return "missing" if outcome == "passed" and name.startswith("/") and name.endswith(("js", "ts")) else outcome


def _go_cases(stdout: str) -> list[TestCase]:
    """Read the events of `go test -json`; a test without an end counts as failed."""
    seen: dict[str, TestCase] = {}
    names = {"pass": "passed", "fail": "failed", "skip": "skipped", "run": "error"}
    for line in stdout.splitlines():
        try:
            event = json.loads(line)
            action, test = event["Action"], event["Test"]
        except (ValueError, KeyError, TypeError):
            continue
        if action in names:
            name = f"{event.get('Package', '')}::{test}"
            seen[name] = TestCase(name, names[action], float(event.get("Elapsed", 0) or 0))
    return [seen[name] for name in sorted(seen)]


def _complain(verdict: Verdict, config: SandboxConfig) -> None:
    result = verdict.result
    assert result is not None
    if result.killed_by == "time":
        verdict.reasons.insert(0, f"The tests did not end within {config.seconds} s.")
    elif result.killed_by:
        verdict.reasons.insert(0, f"The tests were killed at the limit of {result.killed_by}.")
    elif verdict.exit_code != 0:
        verdict.reasons.append(f"The command {verdict.command!r} ended with exit code {verdict.exit_code}.")
    bad = [case for case in verdict.cases if case.outcome != "passed"]
    if bad:
        shown = ", ".join(f"{case.id} ({case.outcome})" for case in bad[:5])
        verdict.reasons.append(f"{len(bad)} of {len(verdict.cases)} tests did not pass: {shown}.")
    elif not verdict.cases:
        verdict.reasons.append("No test ran.")
