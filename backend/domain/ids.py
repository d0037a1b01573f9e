"""Identifiers that must be the same again after a crash (UUIDv5); random ones are made by Postgres (`uuidv7()`)."""

from __future__ import annotations

from functools import lru_cache
from uuid import UUID, uuid5

DEFAULT_TENANT = UUID("00000000-0000-7000-8000-000000000001")
"""The tenant of every row until there are more."""


def effect_id(run_id: UUID, node: str, visit: int, kind: str, ordinal: int) -> UUID:
    """Return the id of the row that the `ordinal`-th effect of `kind` of a node visit projects to."""
    return uuid5(run_id, f"{node}/{visit}/{kind}/{ordinal}")


@lru_cache(maxsize=1024)
def task_id(run_id: UUID, key: str) -> UUID:
    """Return the id of a task by its key, so that effects can name tasks by key alone."""
    return uuid5(run_id, f"task/{key}")
