"""The one rule of every life cycle: a dict of allowed moves and a pure `transition`."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

from backend.errors import Conflict

Status = TypeVar("Status", bound=StrEnum)


def transition(moves: Mapping[Status, frozenset[Status]], current: Status, wanted: Status, *, what: str) -> Status:
    """Return `wanted` if the life cycle allows the move; raise `Conflict` naming `what` and both statuses."""
    if wanted not in moves[current]:
        allowed = ", ".join(sorted(moves[current])) or "nothing: it is final"
        raise Conflict(f"{what} is {current} and cannot become {wanted} (it may become {allowed}).")
    return wanted
