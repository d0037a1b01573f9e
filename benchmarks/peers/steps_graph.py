"""The seven nodes as a LangGraph graph for Aegra and LangGraph's own development server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, TypedDict

sys.path.insert(0, str(Path(__file__).parent))

import work
from langgraph.graph import END, START, StateGraph


class State(TypedDict, total=False):
    """A channel for each artifact."""

    run: int
    part_1: dict[str, Any]
    part_2: dict[str, Any]
    part_3: dict[str, Any]
    part_4: dict[str, Any]
    part_5: dict[str, Any]
    part_6: dict[str, Any]
    part_7: dict[str, Any]


def build() -> StateGraph:
    made = StateGraph(State)
    for number in range(1, work.NODES + 1):

        async def node(state: State, number: int = number) -> dict[str, Any]:
            return {f"part_{number}": work.part(number, state["run"])}

        made.add_node(f"node_{number}", node)
        made.add_edge(START if number == 1 else f"node_{number - 1}", f"node_{number}")
    made.add_edge(f"node_{work.NODES}", END)
    return made


graph = build().compile()
