"""Seven nodes that do nothing but record: a task, a comment, progress, and at the end the report.

The brief may say how large a part each node adds to the state: `part=28000` makes a run of about 200 kB.
"""

from __future__ import annotations

from typing import Any

from langgraph.graph import END, START, StateGraph

from backend.domain import effect
from backend.domain.comment import CommentType
from backend.domain.graph import GraphSpec
from backend.domain.role import Role
from backend.domain.run import RunFacts, RunStatus
from backend.domain.task import TaskKind
from benchmarks.peers.work import NODES, PART, part
from benchmarks.states import Parts


class State(Parts, total=False):
    """A channel for each artifact, as the company's own graph has, and how much each part holds."""

    size: int


def recorded(number: int, said: str) -> list[effect.Effect]:
    """What a node wants recorded."""
    effects = [
        effect.create_task(f"T{number}", f"Task {number}", task_kind=TaskKind.FEATURE, role=Role.DEVELOPER),
        effect.add_comment(Role.DEVELOPER, CommentType.PROGRESS, said, task=f"T{number}"),
        effect.report_progress(number, NODES),
    ]
    if number == NODES:
        effects.append(effect.end_run(RunStatus.COMPLETED, "Done.", {"parts": NODES}))
    return effects


def build() -> StateGraph[Any, Any, Any, Any]:
    """A line of nodes."""
    graph = StateGraph(State)
    for number in range(1, NODES + 1):

        async def node(state: Any, number: int = number) -> Any:
            made = part(number, state["run"])
            if state["size"] > PART:
                made["text"] = (made["text"] * (state["size"] // PART + 1))[: state["size"]]
            return {f"part_{number}": made, "effects": recorded(number, made["text"][:200])}

        graph.add_node(f"node_{number}", node)
        graph.add_edge(START if number == 1 else f"node_{number - 1}", f"node_{number}")
    graph.add_edge(f"node_{NODES}", END)
    return graph


def first_state(facts: RunFacts) -> dict[str, Any]:
    """The number of the run, and the size of its parts."""
    words = dict(word.split("=", 1) for word in facts.brief.split() if "=" in word)
    return {"run": int(words.get("run", 0)), "size": int(words.get("part", PART))}


STEPS = GraphSpec("steps", "1", "Seven nodes that record", build, first_state)
