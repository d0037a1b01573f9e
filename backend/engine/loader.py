"""Finds graphs by name and version among the installed plug-ins, and compiles each once a process.

A plug-in is an entry point of the group `company.graphs` that names a `GraphSpec`. Several entry points may offer
several versions of one graph: a run goes on with the version it is pinned to as long as one of them offers it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from backend.domain.graph import GraphSpec
from backend.domain.role import Role
from backend.engine.driving import prepare
from backend.errors import Invalid, Unavailable

GROUP = "company.graphs"
_log = logging.getLogger(__name__)


class Graphs:
    """The graphs of this installation; `extra` ones are offered beside the installed plug-ins."""

    def __init__(self, extra: Iterable[GraphSpec] = ()) -> None:
        self._extra = tuple(extra)
        self._specs: dict[tuple[str, str], GraphSpec] | None = None
        self._newest: dict[str, str] = {}
        self._compiled: dict[tuple[str, str], Any] = {}

    def _load(self) -> dict[tuple[str, str], GraphSpec]:
        if self._specs is None:
            found = [*(_loaded(point) for point in entry_points(group=GROUP)), *self._extra]
            specs = {(spec.name, spec.version): spec for spec in found if isinstance(spec, GraphSpec)}
            for name, version in specs:
                self._newest[name] = max(version, self._newest.get(name, version), key=_order)
            self._specs = specs
        return self._specs

    def newest(self, name: str) -> str:
        """The version that new runs of a graph are pinned to; raises `Invalid` for an unknown graph."""
        self._load()
        if name not in self._newest:
            known = ", ".join(sorted(self._newest)) or "none is installed"
            raise Invalid(f"There is no graph {name}; installed: {known}.", code="unknown_graph")
        return self._newest[name]

    def roles(self, name: str) -> tuple[Role, ...]:
        """The roles that the newest version of a graph seats; raises `Invalid` for an unknown graph."""
        return tuple(self.find(name, self.newest(name)).roles)

    def find(self, name: str, version: str) -> GraphSpec:
        """The graph that a run is pinned to; raises `Unavailable` (code `graph_gone`) when it is not installed."""
        spec = self._load().get((name, version))
        if spec is None:
            offered = self._newest.get(name)
            there = f"only version {offered} is installed" if offered else "no version of it is installed"
            raise Unavailable(
                f"The run is pinned to version {version} of the graph {name}, but {there}; install that version and "
                "retry the run, or start a new one.",
                code="graph_gone",
            )
        return spec

    def compiled(self, name: str, version: str) -> Any:
        """The compiled graph, without a checkpointer; the same object for every run."""
        key = (name, version)
        if key not in self._compiled:
            self._compiled[key] = prepare(self.find(name, version).build().compile())
        return self._compiled[key]

    def shape(self, name: str, version: str) -> dict[str, Any]:
        """Nodes and edges, for people and programs that draw them."""
        drawn = self.compiled(name, version).get_graph()
        edges = [
            {"source": edge.source, "target": edge.target, "conditional": bool(edge.conditional)}
            for edge in drawn.edges
        ]
        return {"graph": name, "version": version, "nodes": sorted(drawn.nodes), "edges": edges}


def _loaded(point: EntryPoint) -> Any:
    """What a plug-in offers; one that is broken is told of and left out, so that the others still work."""
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        _log.warning("The graph plug-in %s cannot be loaded: %s", point.name, error)
        return None


def _order(version: str) -> tuple[tuple[int, str], ...]:
    """Versions in the order that people count in: 2 before 10."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in version.split("."))
