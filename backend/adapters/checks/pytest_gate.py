"""The tests gate for Python: which tests must run is fixed before, both records must say passed, canaries must fail.

A green exit code alone is never believed.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from backend.adapters.checks import expected, junit
from backend.adapters.checks.scratch import Scratch
from backend.adapters.sandbox import Sandbox
from backend.domain.config import SandboxConfig
from backend.domain.ports import CommandResult, TestCase

RUNNER = Path(__file__).with_name("gate_runner.py")
_CANARY = """import unittest


def test_{name}():
    assert 1 == 2


class Test{name}:
    def test_{name}(self):
        raise RuntimeError("{name}")


class Case{name}(unittest.TestCase):
    def test_{name}(self):
        self.assertEqual(1, 2)
"""
_MOST_CANARIES = 25


@dataclass(slots=True)
class Verdict:
    """What the gate saw; `reasons` is empty when the tests are green."""

    command: str
    reasons: list[str] = field(default_factory=list)
    cases: list[TestCase] = field(default_factory=list)
    result: CommandResult | None = None
    exit_code: int | None = None
    coverage: float | None = None


@dataclass(slots=True)
class Record:
    """What our own recorder inside pytest wrote down."""

    found: list[str] = field(default_factory=list)
    outcomes: dict[str, str] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    tampered: list[str] = field(default_factory=list)
    running: str | None = None
    code: int | None = None


class PytestGate:
    """Runs the tests of one tree."""

    def __init__(self, place: Scratch, sandbox: Sandbox, config: SandboxConfig, extra: Sequence[str] = ()) -> None:
        """`extra` are arguments that the configured command gives to pytest."""
        self.place = place
        self.sandbox = sandbox
        self.config = config
        self.extra = tuple(extra)
        self.options = expected.options(place.tree)

    async def judge(self, only: Sequence[str] = ()) -> Verdict:
        """Collect, plant the canaries, run, compare."""
        verdict = Verdict(" ".join(["pytest", *self.extra, *only]))
        files = await asyncio.to_thread(expected.test_files, self.place.tree)
        if not files:
            verdict.reasons.append("There are no test files (test_*.py or *_test.py).")
            return verdict
        canaries = await asyncio.to_thread(_plant, self.place.tree, files)
        planted = {path for path, _ in canaries}
        before = await self._pytest("before", ["--collect-only", "-q", *only])
        found = _read_record(self.place.read("before.record")).found
        wanted = [test for test in found if test.split("::")[0] not in planted]
        declared = [] if only or self.extra else await asyncio.to_thread(expected.declared, self.place.tree, files)
        wanted += [test for test in declared if not any(_is_of(found, test) for found in wanted)]
        targets = [*only, *sorted(planted)] if only else []
        result = await self._pytest("run", ["--continue-on-collection-errors", *targets], measured=not only)
        verdict.result = result
        record = _read_record(self.place.read("run.record"))
        reported = junit.parse(self.place.read("run.xml"))
        _compare(verdict, wanted, [test for _, test in canaries], record, reported)
        _complain_of_the_end(verdict, result, before, record, self.config)
        verdict.exit_code = (
            None if record.code is None else int(any(case.outcome != "passed" for case in verdict.cases))
        )
        verdict.coverage = None if only else await self._coverage()
        return verdict

    async def _pytest(self, name: str, arguments: Sequence[str], *, measured: bool = False) -> CommandResult:
        out, root = self.place.out, self.place.tree
        settings = ["[pytest]", "markers =", *(f"    {line}" for line in self.options["markers"])]
        (self.place.control / "gate.ini").write_text("\n".join([*settings, "pythonpath =", ""]))
        spec = {
            "root": str(root),
            "record": str(out / f"{name}.record"),
            "coverage": str(out / "coverage.data") if measured else None,
            "omit": ["*/test_*.py", "*_test.py", "*/conftest.py", "*/tests/*"],
            "paths": [str(root), *(str(root / path) for path in self.options["pythonpath"])],
            "arguments": [
                *("-p", "no:cacheprovider", "-c", str(self.place.control / "gate.ini"), "--rootdir", str(root)),
                *("--junitxml", str(out / f"{name}.xml"), "--tb=short", "--color=no", *self.extra, *arguments),
            ],
        }
        (self.place.control / f"{name}.json").write_text(json.dumps(spec))
        return await self.sandbox.run(
            [sys.executable, "-I", str(RUNNER), str(self.place.control / f"{name}.json")],
            root=self.place.root,
            cwd=root,
            config=self.config,
            env={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            readonly=(RUNNER, self.place.control),
        )

    async def _coverage(self) -> float | None:
        """Compute coverage in a fresh process, without pragmas that leave lines out."""
        settings = self.place.control / "coverage.ini"
        settings.write_text("[report]\nexclude_lines =\n    (?!)\nignore_errors = true\n")
        argv = [*(sys.executable, "-I", "-m", "coverage", "json"), "-q", f"--rcfile={settings}"]
        argv += [f"--data-file={self.place.out / 'coverage.data'}", "-o", str(self.place.out / "coverage.json")]
        await self.sandbox.run(
            argv, root=self.place.root, cwd=self.place.tree, config=self.config, readonly=(self.place.control,)
        )
        try:
            return round(float(json.loads(self.place.read("coverage.json"))["totals"]["percent_covered"]), 2)
        except (ValueError, KeyError, TypeError):
            return None


def _is_of(found: str, declared: str) -> bool:
    return found == declared or found.startswith((declared + "[", declared + "::"))


def _plant(root: Path, files: Sequence[str]) -> list[tuple[str, str]]:
    """Put tests that must fail beside the real ones; return (path, id) of each."""
    planted: list[tuple[str, str]] = []
    for folder in sorted({str(PurePosixPath(path).parent) for path in files})[:_MOST_CANARIES]:
        name = secrets.token_hex(6)
        path = str(PurePosixPath(folder) / f"test_{name}.py")
        (root / path).write_text(_CANARY.format(name=name))
        planted += [(path, f"{path}::{test}") for test in _canary_tests(name)]
    return planted


def _canary_tests(name: str) -> tuple[str, ...]:
    return f"test_{name}", f"Test{name}::test_{name}", f"Case{name}::test_{name}"


def _read_record(body: bytes) -> Record:
    record = Record()
    for line in body.splitlines():
        try:
            fact: dict[str, Any] = json.loads(line)
            _take(record, fact)
        except (ValueError, KeyError, TypeError, AttributeError):
            record.tampered.append("the record of the gate")
    return record


def _take(record: Record, fact: dict[str, Any]) -> None:
    kind = fact["kind"]
    if kind == "found":
        record.found = [str(test) for test in fact["ids"]]
    elif kind == "collect":
        record.broken[str(fact["id"])] = str(fact["message"])
    elif kind == "start":
        record.running = str(fact["id"])
    elif kind == "phase":
        _take_phase(record, str(fact["id"]), str(fact["when"]), str(fact["outcome"]), str(fact["message"]))
    elif kind == "tampered":
        record.tampered.append(str(fact["what"]))
    elif kind == "end":
        record.code, record.running = int(fact["code"]), None


def _take_phase(record: Record, test: str, when: str, outcome: str, message: str) -> None:
    """A test passed when its call passed and neither set-up nor tear-down said otherwise."""
    if outcome == "failed" and when != "call":
        outcome = "error"
    if when == "teardown":
        record.running = None
    if (outcome != "passed" or when == "call") and record.outcomes.get(test, "passed") == "passed":
        record.outcomes[test] = outcome
        record.messages[test] = message


def _compare(
    verdict: Verdict,
    wanted: Sequence[str],
    canaries: Sequence[str],
    record: Record,
    reported: dict[tuple[str, str], junit.Verdict] | None,
) -> None:
    """Put the cases together: passed is only what both the recorder and the JUnit report call passed."""
    said = reported or {}
    for test in dict.fromkeys(wanted):
        ours = record.outcomes.get(test, "missing")
        theirs = said.get(junit.address(test))
        outcome = ours if ours != "passed" or (theirs is not None and theirs.outcome == "passed") else "missing"
        message = record.messages.get(test, "")
        verdict.cases.append(TestCase(test, outcome, theirs.seconds if theirs else 0.0, message))
    for path, message in record.broken.items():
        verdict.cases.append(TestCase(path or "(collection)", "error", 0.0, message))
    verdict.cases.sort(key=lambda case: case.id)
    if not wanted:
        verdict.reasons.append("No test was found to run.")
    if reported is None:
        verdict.reasons.append("The runner left no JUnit report.")
    bad = [case for case in verdict.cases if case.outcome != "passed"]
    if bad:
        shown = ", ".join(f"{case.id} ({case.outcome})" for case in bad[:5])
        verdict.reasons.append(f"{len(bad)} of {len(verdict.cases)} tests did not pass: {shown}.")
    silent = [
        test
        for test in canaries
        if record.outcomes.get(test) != "failed"
        or said.get(junit.address(test), None) is None
        or said[junit.address(test)].outcome != "failed"
    ]
    if silent and record.code is not None:
        verdict.reasons.append(f"{len(silent)} of {len(canaries)} canary tests that must fail did not fail.")
    for what in dict.fromkeys(record.tampered):
        verdict.reasons.append(f"The runner was tampered with: {what}.")


def _complain_of_the_end(
    verdict: Verdict, result: CommandResult, before: CommandResult, record: Record, config: SandboxConfig
) -> None:
    """Put what ended the runner before what follows from it: the first reason is what people read of a gate."""
    killed = result.killed_by or before.killed_by
    if killed == "time":
        where = f" while {record.running} ran" if record.running else ""
        verdict.reasons.insert(0, f"The tests did not end within {config.seconds} s{where}.")
    elif killed:
        verdict.reasons.insert(0, f"The tests were killed at the limit of {killed}.")
    elif record.code is None:
        where = f" during {record.running}" if record.running else ""
        verdict.reasons.insert(0, f"The runner ended before its time{where} (exit code {result.exit_code}).")
    elif result.exit_code != 1 or record.code != 1:
        verdict.reasons.append(f"The runner ended with code {result.exit_code}, although canary tests must fail.")
