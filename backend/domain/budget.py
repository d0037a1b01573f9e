"""Limits that were reached, and raising them: what a breach says, and how the answer to a budget question is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, get_args

from backend.errors import Fault, Invalid, LimitReached

Unit = Literal["usd", "tokens", "seconds"]
Scope = Literal["run", "run_role", "project", "tenant_month"]

_ANSWER = re.compile(r"\s*\+?\s*\$?\s*(\d{1,12})(?:\.(\d{1,6}))?\s*(usd|tokens|seconds)?\s*", re.IGNORECASE)
_MOST: dict[Unit, Decimal] = {
    "usd": Decimal(1_000_000),
    "tokens": Decimal(10_000_000_000),
    "seconds": Decimal(2_592_000),
}


@dataclass(frozen=True, slots=True)
class Limit:
    """Which limit is meant: whose, and in what; `name` is `all`, a role, or a month such as 2026-11."""

    scope: Scope
    name: str
    unit: Unit

    @property
    def whose(self) -> str:
        """The owner, as sentences name it."""
        owners = {"run": "the run", "run_role": f"the role {self.name}", "project": "the project"}
        return owners.get(self.scope, f"the month {self.name}")

    def key(self, once: int) -> str:
        """The key of the question that asks to raise this limit; `once` tells two of them apart."""
        return f"budget/{self.scope}/{self.name}/{self.unit}/{once}"


class BudgetReached(LimitReached):
    """A call would pass a limit; nothing was spent."""

    code = "budget"

    def __init__(self, message: str, limit: Limit) -> None:
        super().__init__(message)
        self.limit = limit


def limit_asked_for(key: str) -> Limit | None:
    """The limit that a budget question asks to raise, from its key; None for a question that names none."""
    parts = key.split("/")
    if len(parts) != 5 or parts[0] != "budget" or parts[1] not in get_args(Scope) or parts[3] not in _MOST:
        return None
    scope: Scope = next(known for known in get_args(Scope) if known == parts[1])
    return Limit(scope, parts[2], next(known for known in _MOST if known == parts[3]))


def used_up(limit: Limit, most: object) -> str:
    """A sentence on a limit in seconds of which nothing is left; what others hold of it counts as used."""
    if limit.scope == "run":
        return f"The run has worked for its {most} seconds."
    if limit.scope == "run_role":
        return f"The calls of {limit.whose} have taken its {most} seconds."
    return f"Nothing is left of the {most} seconds that {limit.whose} may be worked on."


def breach(first: Mapping[str, Any], *, unpriced: str | None) -> BudgetReached:
    """What a refused reservation means, from the first limit that it would have passed.

    `unpriced` says what to set where the model has no price and the limit is one in USD.
    """
    limit = Limit(first["scope"], first["name"], first["unit"])
    if unpriced is not None and limit.unit == "usd":
        return BudgetReached(f"{unpriced} The limit in USD of {limit.whose} could not be kept without.", limit)
    if limit.unit == "seconds":
        return BudgetReached(f"{used_up(limit, first['most'])[:-1]}: raise the limit to go on.", limit)
    left = Decimal(str(first["most"])) - Decimal(str(first["spent"])) - Decimal(str(first["held"]))
    return BudgetReached(
        f"The next call may need {first['wanted']} {limit.unit}, but of the {first['most']} {limit.unit} of "
        f"{limit.whose} only {max(Decimal(0), left)} are left: raise the limit to go on.",
        limit,
    )


@dataclass(frozen=True, slots=True)
class Raise:
    """By how much a limit grows."""

    amount: Decimal
    unit: Unit


def read_raise(answer: str, asked: Unit | None = None) -> Raise:
    """Read an answer such as `1.50 usd`, `20000 tokens` or `600 seconds`; raise `Invalid` for anything else.

    A number without a unit is one of the unit that was `asked` for.
    """
    found = _ANSWER.fullmatch(answer)
    said = None if found is None else found[3] or ("usd" if "$" in answer else asked)
    if found is None or said is None:
        right = "an amount and its unit: `1.50 usd`, `20000 tokens` or `600 seconds`"
        raise Invalid(f"A limit is raised by {right}.", faults=[Fault("/answer", right)])
    unit: Unit = next(known for known in _MOST if known == said.lower())
    amount = Decimal(f"{found[1]}.{found[2] or 0}")
    if amount <= 0 or amount > _MOST[unit] or (unit != "usd" and amount != int(amount)):
        right = f"a {'number' if unit == 'usd' else 'whole number'} of {unit} above 0 and up to {_MOST[unit]:,}"
        raise Invalid(f"A limit is raised by {right}.", faults=[Fault("/answer", right)])
    return Raise(amount, unit)
