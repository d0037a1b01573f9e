"""Runs pytest inside the sandbox for the gate, keeps its own record of every test, and notices tampering with pytest.

It stands alone: the interpreter inside sees this file, pytest, coverage and the project. Everything it needs is
imported before the project can put anything in the way.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import sys
import types
import unittest.case
from pathlib import Path
from typing import Any

import _pytest
import coverage
import pluggy
import pytest

_ALLOWED_HOOKS = frozenset({"pytest_addoption", "pytest_configure", "pytest_unconfigure", "pytest_generate_tests"})
_TRUSTED = tuple(
    str(Path(str(module.__file__)).resolve().parent) + os.sep for module in (_pytest, pluggy, pytest, coverage)
)
_GUARDED = ("runner", "reports", "junitxml", "main", "python", "unittest", "skipping", "nodes", "outcomes")


class Recorder:
    """Writes a line for everything that happens, as it happens, and says what was tampered with."""

    def __init__(self, out: str) -> None:
        """Append to a file that nobody else is told of."""
        self._file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._dumps, self._write = json.dumps, os.write

    def tell(self, **fact: Any) -> None:
        """Record one fact."""
        self._write(self._file, self._dumps(fact).encode() + b"\n")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Record what could not be collected."""
        if report.failed:
            self.tell(kind="collect", id=report.nodeid, message=str(report.longrepr)[-4000:])

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Record the ids that were found."""
        self.tell(kind="found", ids=[item.nodeid for item in session.items])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Record that a test begins, so that one that never ends can be named."""
        self.tell(kind="start", id=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record each phase of a test."""
        outcome = "skipped" if hasattr(report, "wasxfail") else report.outcome
        message = "" if report.passed else str(report.longrepr)[-4000:]
        self.tell(kind="phase", id=report.nodeid, when=report.when, outcome=outcome, message=message)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Record hooks of others that could have changed a verdict."""
        manager = session.config.pluginmanager
        for name in sorted(dir(manager.hook)):
            caller = getattr(manager.hook, name)
            if name in _ALLOWED_HOOKS or not isinstance(caller, pluggy.HookCaller):
                continue
            for implementation in caller.get_hookimpls():
                source = implementation.function.__code__.co_filename
                if implementation.plugin is not self and not source.startswith(_TRUSTED):
                    self.tell(kind="tampered", what=f"the hook {name} of {Path(source).name}")


def snapshot() -> dict[str, tuple[int, int]]:
    """Return the identity of every function that decides about verdicts."""
    modules = [importlib.import_module(f"_pytest.{name}") for name in _GUARDED]
    modules += [importlib.import_module(f"pluggy.{name.name}") for name in pkgutil.iter_modules(pluggy.__path__)]
    seen: dict[str, tuple[int, int]] = {}
    for module in [*modules, unittest.case]:
        for holder in [module, *(value for value in vars(module).values() if isinstance(value, type))]:
            for name, value in list(vars(holder).items()):
                function = getattr(value, "__func__", value)
                if isinstance(function, types.FunctionType):
                    place = f"{module.__name__}.{getattr(holder, '__qualname__', '')}.{name}"
                    seen[place] = (id(value), id(function.__code__))
    return seen


def impostors() -> list[str]:
    """Return modules of pytest or coverage that did not come from where they are installed."""
    found = []
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in {"_pytest", "pytest", "pluggy", "coverage"}:
            source = getattr(module, "__file__", None)
            if source is not None and not str(Path(source).resolve()).startswith(_TRUSTED):
                found.append(name)
    return found


def main(spec: dict[str, Any]) -> int:
    """Collect or run, as the spec says."""
    for found in pkgutil.iter_modules(_pytest.__path__):
        importlib.import_module(f"_pytest.{found.name}")
    recorder, before = Recorder(spec["record"]), snapshot()
    measured = None
    if spec["coverage"]:
        measured = coverage.Coverage(
            data_file=spec["coverage"], source=[spec["root"]], omit=spec["omit"], config_file=False, branch=False
        )
        measured.start()
    sys.path[:0] = spec["paths"]
    code = int(pytest.main(spec["arguments"], plugins=[recorder]))
    after = snapshot()
    for place in sorted(place for place in before if after.get(place) != before[place]):
        recorder.tell(kind="tampered", what=f"the function {place}")
    for name in impostors():
        recorder.tell(kind="tampered", what=f"the module {name}")
    if measured is not None:
        measured.stop()
        measured.save()
    recorder.tell(kind="end", code=code)
    return code


if __name__ == "__main__":
    with open(sys.argv[1], "rb") as file:  # noqa: PTH123  (strings only)
        sys.exit(main(json.load(file)))
