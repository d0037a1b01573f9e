"""The prompts that runs are pinned to: pinned once, by the worker that first takes a run up, and read by their hashes.

A run's row holds name and hash of each prompt, the table `prompts` the texts, once for all runs. What a hash stands for
never changes, so texts are read once a process, and an installation's own are not read at all. A text that is not
there, or is not what its hash says, is refused: no model is asked in other words than the run began with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import orjson

from backend.adapters.db.checkpointer import LeaseLost
from backend.adapters.db.checkpointer.sending import fetch
from backend.agents.prompt import PromptSet, installed, sha256
from backend.errors import Unavailable

_PIN = (
    "WITH kept AS (INSERT INTO prompts (sha256, name, text)"
    " SELECT * FROM unnest($3::text[], $4::text[], $5::text[]) ON CONFLICT DO NOTHING)"
    " UPDATE project_runs SET prompts = coalesce(prompts, $6::jsonb) WHERE id = $1 AND lease_epoch = $2"
    " RETURNING prompts::text AS pins"
)
_TEXTS = "SELECT coalesce(jsonb_object_agg(sha256, text), '{}')::text AS texts FROM prompts WHERE sha256 = ANY ($1)"
_MOST = 100
"""Sets that stay open; each is some 30 kB, and few releases meet."""


class Library:
    """All that a process knows of prompts: those of its installation, and those of other releases that it met."""

    def __init__(self, pool: Any, own: PromptSet | None = None) -> None:
        self._pool = pool
        self.own = own or installed()
        self.pins = orjson.dumps(self.own.hashes).decode()
        """What a run is pinned to that this process is the first to take up."""
        self._open: dict[str, PromptSet] = {}

    async def pin(self, run_id: UUID, epoch: int) -> str:
        """Pin a run to the prompts of this installation, and keep their texts; one that is pinned stays as it is.

        Returns what the run is pinned to. Raises `LeaseLost`.
        """
        hashes = sorted((kept, name) for name, kept in self.own.hashes.items())
        # In one order everywhere: who keep the same texts at the same time wait for each other, never in a ring.
        texts = [self.own.texts[name] for _, name in hashes]
        args = (run_id, epoch, [kept for kept, _ in hashes], [name for _, name in hashes], texts, self.pins)
        row = await fetch(self._pool, _PIN, args)
        if row is None:
            raise LeaseLost("The run has another owner.")
        pins: str = row["pins"]
        return pins

    async def open(self, pins: str) -> PromptSet:
        """The prompts that a run is pinned to; raises `Unavailable` (`prompt_gone`) where a text is not what it was."""
        if pins not in self._open:
            if len(self._open) >= _MOST:
                self._open.clear()
            self._open[pins] = await self._read(orjson.loads(pins))
        return self._open[pins]

    async def _read(self, pinned: Mapping[str, str]) -> PromptSet:
        if pinned == self.own.hashes:
            return self.own
        known = {kept: self.own.texts[name] for name, kept in self.own.hashes.items()}
        strange = [kept for kept in pinned.values() if kept not in known]
        if strange:
            known |= orjson.loads((await fetch(self._pool, _TEXTS, (strange,)))["texts"])
        for name, kept in pinned.items():
            if kept not in known or sha256(known[kept]) != kept:
                raise _gone(name, kept, "another text is" if kept in known else "none is")
        return PromptSet({name: known[kept] for name, kept in pinned.items()})


def _gone(name: str, kept: str, found: str) -> Unavailable:
    return Unavailable(
        f"The run is pinned to the prompt {name} with the hash {kept}, but {found} kept under it in the table prompts: "
        "put that row back and retry the run, or start a new one.",
        code="prompt_gone",
    )
