"""The table of all faults at the end of a session, whichever process injected them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tests.acceptance.faults import numbers


def _lines(reports: Iterable[Any]) -> list[list[str]]:
    seen: dict[str, list[list[str]]] = {}
    for report in reports:
        told = [line for name, line in getattr(report, "user_properties", ()) if name == numbers.PROPERTY]
        if told:
            seen[report.nodeid] = told
    return [line for nodeid in sorted(seen) for line in seen[nodeid]]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what was injected."""
    lines = _lines(report for reports in terminalreporter.stats.values() for report in reports)
    if not lines:
        return
    rest = "" if numbers.FULL else "; all of them with COMPANY_TEST_CHAOS=full"
    terminalreporter.section(f"faults injected: {numbers.SHARE:.0%} of the promised numbers{rest}")
    wide = [max(len(line[column]) for line in lines) for column in (0, 1)]
    for case, faults, counts in lines:
        terminalreporter.write_line(f"{case:<{wide[0]}}  {faults:>{wide[1]}}  {counts}")
