"""A small company for tests of the graph: two tasks, a few files, and hooks for everything that may go wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from backend.domain.config import RunConfig
from backend.domain.model import ModelReply, ModelRequest, Position
from tests.acceptance.stage import call, reply

BRIEF = "Write a greeting and a farewell, each in a module of its own."
SUBMIT = call("submit", summary="It is done and its tests pass.")
PYTEST = "[tool.pytest.ini_options]\ntestpaths = ['tests']\npythonpath = ['.']\n"

Calls = Sequence[tuple[str, Any]]


def config(*, off: Sequence[str] = ("docs", "devops", "security"), **changes: Any) -> RunConfig:
    """Settings of a run; the roles in `off` have no seat."""
    return RunConfig.model_validate({"roles": {role: {"enabled": False} for role in off}, **changes})


def module(name: str, word: str) -> tuple[str, dict[str, Any]]:
    """A module with one function."""
    return call("write_file", path=f"{name}.py", content=f"def say() -> str:\n    return {word!r}\n")


def checking(name: str, word: str, *criteria: str) -> tuple[str, dict[str, Any]]:
    """An acceptance test of such a module."""
    body = f'import {name}\n\n\ndef test_{name}() -> None:\n    """criterion: {", ".join(criteria)}"""\n'
    return call("write_file", path=f"tests/test_{name}.py", content=body + f"    assert {name}.say() == {word!r}\n")


class SmallCompany:
    """Replies by role; every attribute may be replaced by a test. Developers' visits count from 1 for each task."""

    def __init__(self) -> None:
        self.questions: list[dict[str, Any]] = []
        self.tasks: list[dict[str, Any]] = [task("hello"), task("bye")]
        self.changes: dict[str, Callable[[int], Calls]] = {
            "hello": lambda visit: [
                module("hello", "hello"),
                call("write_file", path="pyproject.toml", content=PYTEST),
            ],
            "bye": lambda visit: [module("bye", "bye")],
        }
        self.tests: Callable[[int], Calls] = lambda visit: [
            checking("hello", "hello", "hello#1"),
            checking("bye", "bye", "bye#1"),
        ]
        self.review: Callable[[str, int], dict[str, Any]] = lambda key, visit: approve()
        self.visits: dict[str, list[int]] = {}

    def __call__(self, request: ModelRequest, position: Position) -> ModelReply:
        """Answer one request by its position."""
        return reply(*getattr(self, f"_{position.node}")(request, position))

    def _pm_analyze_requirements(self, request: ModelRequest, position: Position) -> Calls:
        return [call("analysis", summary="Two words.", requirements=["Say them."], questions=self.questions)]

    def _pm_create_tasks(self, request: ModelRequest, position: Position) -> Calls:
        return [call("plan", approach="A module for each word.", tasks=self.tasks)]

    def _dev_work(self, request: ModelRequest, position: Position) -> Calls:
        key = position.task_key or ""
        seen = self.visits.setdefault(key, [])
        if position.visit not in seen:
            seen.append(position.visit)
        make = self.changes.get(key) or self.changes[re.sub(r"^(bug|conflict|change|security)-.*$", r"\1", key)]
        return make(len(seen)) if position.ordinal == 1 else [SUBMIT]

    def _lead_review(self, request: ModelRequest, position: Position) -> Calls:
        key = position.task_key or ""
        return [call("review", **self.review(key, len(self.visits[key])))]

    def _qa_test(self, request: ModelRequest, position: Position) -> Calls:
        return self.tests(position.visit) if position.ordinal == 1 else [SUBMIT]

    def _security_scan(self, request: ModelRequest, position: Position) -> Calls:
        names = re.findall(r"\b([0-9a-f]{32}) [A-Z]+ ", str(request.messages[1]["content"]))
        found = [{"fingerprint": name, "explanation": "It leaks.", "proposal": "Remove it."} for name in names]
        return [call("triage", summary="It leaks.", findings=found)]

    def _docs_finalize(self, request: ModelRequest, position: Position) -> Calls:
        readme = call("write_file", path="README.md", content="# Words\n\nSee `hello.py`.\n")
        return [readme] if position.ordinal == 1 else [SUBMIT]

    def _devops_prepare(self, request: ModelRequest, position: Position) -> Calls:
        ignore = call("write_file", path=".dockerignore", content="*\n")
        return [ignore] if position.ordinal == 1 else [SUBMIT]

    def _final_decision(self, request: ModelRequest, position: Position) -> Calls:
        return [call("report", headline="Two words.", summary="They can be said.")]


def task(key: str, **more: Any) -> dict[str, Any]:
    """A task of the plan."""
    return {"key": key, "title": f"Say {key}", "acceptance_criteria": [f"{key}.say() returns {key}."], **more}


def approve() -> dict[str, Any]:
    """A review that lets a change through."""
    return {"decision": "approve", "summary": "Good."}


def send_back(path: str) -> dict[str, Any]:
    """A review that does not."""
    finding = {"path": path, "severity": "HIGH", "message": "This is not what the criterion says."}
    return {"decision": "changes", "summary": "Not yet.", "findings": [finding]}
