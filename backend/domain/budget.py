"""Raising a limit: how the answer to a budget question is read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from backend.errors import Fault, Invalid

Unit = Literal["usd", "tokens", "seconds"]

_ANSWER = re.compile(r"\s*\+?\s*(\d{1,12})(?:\.(\d{1,6}))?\s*(usd|tokens|seconds)\s*", re.IGNORECASE)
_MOST: dict[Unit, Decimal] = {
    "usd": Decimal(1_000_000),
    "tokens": Decimal(10_000_000_000),
    "seconds": Decimal(2_592_000),
}


@dataclass(frozen=True, slots=True)
class Raise:
    """By how much a limit grows."""

    amount: Decimal
    unit: Unit


def read_raise(answer: str) -> Raise:
    """Read an answer such as `1.50 usd`, `20000 tokens` or `600 seconds`; raise `Invalid` for anything else."""
    found = _ANSWER.fullmatch(answer)
    if found is None:
        right = "an amount and its unit: `1.50 usd`, `20000 tokens` or `600 seconds`"
        raise Invalid(f"A limit is raised by {right}.", faults=[Fault("/answer", right)])
    unit: Unit = next(known for known in _MOST if known == found[3].lower())
    amount = Decimal(f"{found[1]}.{found[2] or 0}")
    if amount <= 0 or amount > _MOST[unit] or (unit != "usd" and amount != int(amount)):
        right = f"a {'number' if unit == 'usd' else 'whole number'} of {unit} above 0 and up to {_MOST[unit]:,}"
        raise Invalid(f"A limit is raised by {right}.", faults=[Fault("/answer", right)])
    return Raise(amount, unit)
