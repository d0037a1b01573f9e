"""How many faults each case injects: the numbers that are promised with COMPANY_TEST_CHAOS=full, else a tenth."""

from __future__ import annotations

import os

FULL = os.environ.get("COMPANY_TEST_CHAOS") == "full"


def of(promised: int) -> int:
    """How many to inject now."""
    return promised if FULL else max(1, promised // 10)


def report(case: str, **counts: object) -> None:
    """Say what a case did; seen with `pytest -s` or in the report of a failure."""
    told = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
    print(f"\n{case}: {told} ({'full' if FULL else 'a tenth'})")
