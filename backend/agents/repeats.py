"""Repeat detection: the same call with the same result, again and again, gets nobody further."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from backend.agents.history import steady
from backend.agents.tools import EDITS

LIMIT = 4


class Repeats:
    """Counts calls with their results; a change to a file gives everything but edits a fresh start."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], list[str]] = {}

    def note(self, call_id: str, name: str, arguments: Mapping[str, Any], observation: str, *, ok: bool) -> list[str]:
        """Count one call; return the ids of its repetitions once there are four, else nothing."""
        key = (name, json.dumps(arguments, sort_keys=True) + "\0" + steady(observation))
        ids = self._seen.setdefault(key, [])
        ids.append(call_id)
        if name in EDITS and ok:
            self._seen = {seen: ids for seen, ids in self._seen.items() if seen[0] in EDITS}
        return list(ids) if len(ids) >= LIMIT else []

    def forget(self) -> None:
        """Begin to count anew."""
        self._seen.clear()
