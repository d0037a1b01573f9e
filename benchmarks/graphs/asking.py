"""Seven nodes that each ask a model once, or, with `question` in the brief, ask people before the third node."""

from __future__ import annotations

import time
from typing import Annotated, Any, TypedDict

from langgraph.channels import EphemeralValue
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

from backend.domain import effect
from backend.domain.comment import CommentType
from backend.domain.graph import GraphSpec
from backend.domain.model import ModelRequest
from backend.domain.ports import RunContext, Visit
from backend.domain.question import QuestionKind
from backend.domain.role import Role
from backend.domain.run import RunFacts, RunStatus
from benchmarks.peers.work import NODES


class State(TypedDict, total=False):
    """The last reply of each node."""

    brief: str
    said_1: str
    said_2: str
    said_3: str
    said_4: str
    said_5: str
    said_6: str
    said_7: str
    effects: Annotated[list[effect.Effect], EphemeralValue(list, guard=False)]


async def _said(context: RunContext, number: int) -> str:
    seat = context.seat(Visit(f"node_{number}", 1))
    request = ModelRequest(Role.DEVELOPER, ({"role": "user", "content": f"Step {number}: go on."},))
    return (await seat.ask(request)).content


def build() -> StateGraph[Any, Any, Any, Any]:
    """A line of nodes."""
    graph = StateGraph(State, context_schema=RunContext)
    for number in range(1, NODES + 1):

        async def node(state: Any, runtime: Runtime[RunContext], number: int = number) -> Any:
            asks = "question" in state["brief"]
            # When the node began, for whoever measures how long it took to come here.
            said = repr(time.time()) if asks else await _said(runtime.context, number)
            effects = [
                effect.add_comment(Role.DEVELOPER, CommentType.PROGRESS, said),
                effect.report_progress(number, NODES),
            ]
            if asks and number == 2:  # noqa: PLR2004 - the second node asks
                effects.append(
                    effect.ask_question("colour", QuestionKind.CLARIFICATION, "Which colour?", asked_by=Role.PM)
                )
            if number == NODES:
                effects.append(effect.end_run(RunStatus.COMPLETED, "Done.", {}))
            return {f"said_{number}": said, "effects": effects}

        graph.add_node(f"node_{number}", node)
        graph.add_edge(START if number == 1 else f"node_{number - 1}", f"node_{number}")
    graph.add_edge(f"node_{NODES}", END)
    return graph


def first_state(facts: RunFacts) -> dict[str, Any]:
    """The brief steers."""
    return {"brief": facts.brief}


ASKING = GraphSpec("asking", "1", "Seven nodes that ask", build, first_state, (Role.DEVELOPER,))
