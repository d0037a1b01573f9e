"""The graph of the company: from a brief to a reviewed, tested, scanned repository.

Importing this package does nothing; LangGraph is imported when the graph is built.
"""

from __future__ import annotations

from typing import Any

from backend.domain.graph import GraphSpec
from backend.domain.role import Role
from backend.domain.run import RunFacts


def _build() -> Any:
    from graphs.software_company.graph import build

    return build()


def _initial_state(facts: RunFacts) -> dict[str, Any]:
    """Everything a run begins from is in its facts; the first node only needs to be started."""
    return {"visits": {}}


GRAPH = GraphSpec(
    name="software_company",
    version="1",
    title="A software company: product manager, developers, lead, QA, security, docs and devops",
    build=_build,
    initial_state=_initial_state,
    roles=tuple(Role),
)
