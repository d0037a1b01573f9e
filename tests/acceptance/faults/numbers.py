"""How many faults each case injects: the numbers that are promised with COMPANY_TEST_CHAOS=full, else a tenth."""

from __future__ import annotations

import os

FULL = os.environ.get("COMPANY_TEST_CHAOS") == "full"
PROPERTY = "fault"
"""The name under which a test's report carries its lines of the table, from any xdist process to the terminal."""
_told: list[list[tuple[str, object]]] = []


def of(promised: int) -> int:
    """How many to inject now."""
    return promised if FULL else max(1, promised // 10)


def collect_into(properties: list[tuple[str, object]]) -> None:
    """Let the lines of the test that runs now travel with its report."""
    _told[:] = [properties]


def report(case: str, faults: int, of_promised: int, what: str, **counts: object) -> None:
    """Say what a case did, in the table at the end of the session; fewer faults than promised are a failure."""
    told = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
    for properties in _told:
        properties.append((PROPERTY, [case, f"{faults} {what}", told]))
    print(f"\n{case}: {faults} {what}, {told} ({'full' if FULL else 'a tenth'})")
    assert faults >= of_promised, f"{case}: {faults} {what} were injected, {of_promised} are promised"
