"""Identifiers that must be the same again after a crash (UUIDv5); random ones are made by Postgres (`uuidv7()`)."""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha1
from uuid import UUID

DEFAULT_TENANT = UUID("00000000-0000-7000-8000-000000000001")
"""The tenant of every row until there are more."""


def named(space: UUID, name: str) -> str:
    """Return the text of the UUIDv5 of a name, which is `str(uuid5(space, name))` in a third of its time."""
    digest = sha1(space.bytes + name.encode(), usedforsecurity=False).hexdigest()
    return f"{digest[:8]}-{digest[8:12]}-5{digest[13:16]}-{_VARIANT[digest[16]]}{digest[17:20]}-{digest[20:32]}"


_VARIANT = dict(zip("0123456789abcdef", 4 * "89ab", strict=True))
"""The digit that says of an id that it is made as RFC 9562 says, in place of one that says less."""


@lru_cache(maxsize=1024)
def task_id(run_id: UUID, key: str) -> UUID:
    """Return the id of a task by its key, so that effects can name tasks by key alone."""
    return UUID(task_name(run_id, key))


def task_name(run_id: UUID, key: str) -> str:
    """Return the same id as text."""
    return named(run_id, f"task/{key}")
