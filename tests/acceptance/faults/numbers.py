"""How many faults each case injects: the numbers that are promised with COMPANY_TEST_CHAOS=full, else a tenth.

Another share may be named, as `COMPANY_TEST_CHAOS=0.02`, to work on a case.
"""

from __future__ import annotations

import os

import pytest

_NAMED = os.environ.get("COMPANY_TEST_CHAOS", "0.1")
FULL = _NAMED == "full"
SHARE = 1.0 if FULL else float(_NAMED)
PROPERTY = "fault"
"""The name under which a test's report carries its lines of the table, from any xdist process to the terminal."""
_told: list[list[tuple[str, object]]] = []


def of(promised: int) -> int:
    """How many to inject now."""
    return max(1, round(promised * SHARE))


def patience(minutes: float) -> pytest.MarkDecorator:
    """Let a test that takes so many minutes with the full numbers run as long as its share of them may take."""
    return pytest.mark.timeout(max(900, round(60 * minutes * SHARE)))


def collect_into(properties: list[tuple[str, object]]) -> None:
    """Let the lines of the test that runs now travel with its report."""
    _told[:] = [properties]


def report(case: str, faults: int, of_promised: int, what: str, **counts: object) -> None:
    """Say what a case did, in the table at the end of the session; fewer faults than promised are a failure."""
    told = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
    for properties in _told:
        properties.append((PROPERTY, [case, f"{faults} {what}", told]))
    print(f"\n{case}: {faults} {what}, {told} ({SHARE:.0%})")
    assert faults >= of_promised, f"{case}: {faults} {what} were injected, {of_promised} are promised"
