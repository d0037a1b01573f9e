"""What must hold for every run at any moment: each invariant of the database's `invariants.sql`, and what breaks it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters import db

MOST = 20
"""Offences that are told of each invariant."""
_TITLE = re.compile(r"^-- name: ([a-z-]+) \| (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Invariant:
    """A sentence that holds for the whole database, and the statement that lists its offences."""

    name: str
    sentence: str
    statement: str


@dataclass(frozen=True, slots=True)
class Checked:
    """An invariant with the first rows that break it; none when it holds."""

    name: str
    sentence: str
    offences: tuple[Mapping[str, str], ...]


def listed() -> list[Invariant]:
    """The invariants, in the order of the file."""
    assert db.__file__ is not None
    _, *parts = _TITLE.split(Path(db.__file__).with_name("invariants.sql").read_text(encoding="utf-8"))
    return [
        Invariant(name, sentence, statement.partition(";")[0].strip())
        for name, sentence, statement in zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    ]


async def check(session: AsyncSession) -> list[Checked]:
    """Look for offences against each invariant; reads only, and at most `MOST` rows of each."""
    return [Checked(invariant.name, invariant.sentence, await _offences(session, invariant)) for invariant in listed()]


async def _offences(session: AsyncSession, invariant: Invariant) -> tuple[Mapping[str, str], ...]:
    found = await session.stream(text(invariant.statement))
    rows = await found.mappings().fetchmany(MOST)
    await found.close()
    return tuple({name: str(value) for name, value in row.items()} for row in rows)
