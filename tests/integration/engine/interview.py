"""A graph that speaks in prompts alone: a question, an answer of a person if the brief says so, and a follow-up.

`prompts()` makes what it needs of them; `word` stands in every text, so that a call tells whose release it speaks for.
"""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

from langgraph.channels import EphemeralValue
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

from backend.agents.desk import Desk
from backend.agents.prompt import PromptSet
from backend.domain import effect
from backend.domain.graph import GraphSpec
from backend.domain.ports import RunContext, Visit
from backend.domain.question import QuestionKind
from backend.domain.role import Role
from backend.domain.run import RunFacts, RunStatus


class State(TypedDict, total=False):
    brief: str
    said: Annotated[dict[str, str], operator.or_]
    effects: Annotated[list[effect.Effect], EphemeralValue(list, guard=False)]


def prompts(word: str, **texts: str) -> PromptSet:
    """The prompts of a release; `texts` are others, or more."""
    made = {
        "rules": f"Rules of {word}.\n",
        "lead": '{% include "rules" %}\nBegin, says ' + word + ".\n--- user ---\n{{ brief }}\n",
        "qa": '{% include "rules" %}\nGo on, says ' + word + ".\n--- user ---\n{{ brief }}, {{ said }}\n",
    }
    return PromptSet(made | texts)


async def _ask(context: RunContext, node: str, role: Role, *, times: int = 1, **facts: Any) -> str:
    seat, config = context.seat(Visit(node, 1)), context.run.config.role(role)
    desk = Desk(role=role, ask=seat.ask, config=config, prompts=context.prompts)
    opening = desk.prompts.opening(str(role), **facts)
    for _ in range(times):
        reply = await desk.call(opening.messages, prompt_hash=opening.prompt_hash)
    return reply.content


async def begin(state: State, runtime: Runtime[RunContext]) -> State:
    said = await _ask(runtime.context, "begin", Role.LEAD, times=1 + ("twice" in state["brief"]), brief=state["brief"])
    effects = [effect.report_progress(1, 2)]
    if "question" in state["brief"]:
        effects.append(effect.ask_question("colour", QuestionKind.CLARIFICATION, "Which colour?", asked_by=Role.LEAD))
    return {"said": {"begin": said}, "effects": effects}


async def follow(state: State, runtime: Runtime[RunContext]) -> State:
    said = await _ask(runtime.context, "follow", Role.QA, brief=state["brief"], said=state["said"]["begin"])
    return {"said": {"follow": said}, "effects": [effect.report_progress(2, 2)]}


async def decide(state: State, runtime: Runtime[RunContext]) -> State:
    return {"effects": [effect.end_run(RunStatus.COMPLETED, "All was said.", {"said": state["said"]})]}


def build() -> Any:
    graph = StateGraph(State, context_schema=RunContext)
    for node in (begin, follow, decide):
        graph.add_node(node.__name__, node)
    graph.add_edge(START, "begin")
    graph.add_edge("begin", "follow")
    graph.add_edge("follow", "decide")
    graph.add_edge("decide", END)
    return graph


def first_state(facts: RunFacts) -> dict[str, Any]:
    return {"brief": facts.brief, "said": {}}


INTERVIEW = GraphSpec("interview", "1", "A question and a follow-up", build, first_state, (Role.LEAD, Role.QA))
