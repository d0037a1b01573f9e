"""What a graph plug-in declares: an entry point in the group `company.graphs` names an object of this type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from backend.domain.role import Role
from backend.domain.run import RunFacts

RECURSION_LIMIT = 10_000
"""Supersteps a run may take; gates end loops long before."""


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """A graph by name and version; a run is pinned to both.

    `build` returns a LangGraph `StateGraph` that is not compiled yet, whose context schema is `RunContext`, and whose
    state is a TypedDict of plain JSON with the key `effects`, annotated `EphemeralValue(list, guard=False)`
    (the saver projects it to rows and strips it from checkpoints). Change `version` whenever a run in flight could not
    go on under the new code.
    """

    name: str
    version: str
    title: str
    build: Callable[[], Any]
    initial_state: Callable[[RunFacts], dict[str, Any]]
    roles: tuple[Role, ...] = ()
