"""A journal-heavy graph: a plan, parallel work by sends, a review that repeats once, and an end.

Steered by the brief, so that one graph shows every way a run goes: words in it make a node ask people, hang, fail, or
take its whole process down.
"""

from __future__ import annotations

import asyncio
import operator
import os
import resource
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langgraph.channels import EphemeralValue
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Send, interrupt

from backend.domain import effect
from backend.domain.comment import CommentType
from backend.domain.graph import GraphSpec
from backend.domain.model import ModelRequest
from backend.domain.ports import RunContext, StepFailed, Visit
from backend.domain.question import QuestionKind
from backend.domain.role import Role
from backend.domain.run import RunFacts, RunStatus
from backend.domain.task import TaskKind, TaskStatus

PARTS = ("a", "b", "c")


class State(TypedDict, total=False):
    brief: str
    round: int
    part: str
    visit: int
    done: Annotated[dict[str, str], operator.or_]
    said: Annotated[dict[str, str], operator.or_]
    effects: Annotated[list[effect.Effect], EphemeralValue(list, guard=False)]


async def _ask(context: RunContext, visit: Visit, role: Role, texts: list[str]) -> list[str]:
    seat = context.seat(visit)
    replies: list[str] = []
    messages: list[dict[str, Any]] = []
    for text in texts:
        messages.append({"role": "user", "content": text})
        request = ModelRequest(role, tuple(messages), task_key=visit.task_key)
        reply = await seat.ask(request)
        messages.append(reply.message)
        replies.append(reply.content)
        await seat.note("command.finished", {"command": text, "exit_code": 0})
    return replies


async def plan(state: State, runtime: Runtime[RunContext]) -> State:
    said = await _ask(runtime.context, Visit("plan", 1), Role.PM, ["plan", "and the risks"])
    tasks = [
        effect.create_task(part, f"Part {part}", task_kind=TaskKind.FEATURE, role=Role.DEVELOPER) for part in PARTS
    ]
    effects = [*tasks, effect.add_comment(Role.PM, CommentType.PLAN, said[0]), effect.report_progress(1, 6)]
    if "question" in state["brief"]:
        due = runtime.context.run.config.people.due_seconds
        asked = effect.ask_question(
            "colour", QuestionKind.CLARIFICATION, "Which colour?", asked_by=Role.PM, due_seconds=due
        )
        effects.append(asked)
    return {"round": 1, "said": {"plan": said[0]}, "effects": effects}


def send(state: State) -> list[Send]:
    return [
        Send("work", {"part": part, "visit": 10 * state["round"] + place, "brief": state["brief"]})
        for place, part in enumerate(PARTS)
    ]


async def work(state: State, runtime: Runtime[RunContext]) -> State:
    part = state["part"]
    if "hang" in state["brief"]:
        await asyncio.sleep(3600)
    said = await _ask(runtime.context, Visit("work", state["visit"], part), Role.DEVELOPER, [f"{part} 1", f"{part} 2"])
    if "apart" in state["brief"]:
        # Parts that are done at the same moment share one commit, and none has one of its own.
        await asyncio.sleep(0.1 * PARTS.index(part))
    moves = [TaskStatus.READY, TaskStatus.IN_PROGRESS] if state["visit"] < 20 else []
    effects = [effect.move_task(part, to) for to in moves]
    effects.append(effect.add_comment(Role.DEVELOPER, CommentType.PROGRESS, said[-1], task=part))
    return {"done": {part: said[-1]}, "effects": effects}


async def review(state: State, runtime: Runtime[RunContext]) -> State:
    number = state["round"]
    said = await _ask(runtime.context, Visit("review", number), Role.LEAD, [f"review {number}"])
    if "unusable" in state["brief"]:
        raise StepFailed("unusable_reply", "The lead's reply cannot be used.", replies_at_fault=True)
    effects = [effect.add_comment(Role.LEAD, CommentType.REVIEW, said[0])]
    if number == 2:
        effects += [effect.move_task(part, TaskStatus.DONE) for part in PARTS]
    return {"round": number + 1, "said": {f"review {number}": said[0]}, "effects": effects}


def after_review(state: State) -> list[Send] | str:
    return send(state) if state["round"] == 2 else "confirm"


def _poison(brief: str) -> None:
    if "exits" in brief:
        os._exit(3)
    if "eats" in brief:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000, resource.RLIM_INFINITY))
        hoard = []
        while True:
            hoard.append(bytearray(10_000_000))
    while "spins" in brief:
        pass


async def confirm(state: State, runtime: Runtime[RunContext]) -> State:
    _poison(state["brief"])
    if "interrupt" in state["brief"]:
        return {"said": {"confirmed": str(interrupt("Really?"))}}
    answer = runtime.context.answers.get("colour")
    return {"said": {"confirmed": answer.text if answer else "nobody was asked"}}


async def sign(state: State, runtime: Runtime[RunContext]) -> State:
    return {"said": {"signed": "by the second version"}}


async def decide(state: State, runtime: Runtime[RunContext]) -> State:
    report = {"done": dict(sorted(state["done"].items())), "said": dict(sorted(state["said"].items()))}
    if "endless" in state["brief"]:
        return {"effects": []}
    return {"effects": [effect.end_run(RunStatus.COMPLETED, "All parts are done.", report)]}


def build(nodes: tuple[Any, ...] = (plan, work, review, confirm, decide)) -> Any:
    graph = StateGraph(State, context_schema=RunContext)
    for node in nodes:
        graph.add_node(node.__name__, node)
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", send, ["work"])
    graph.add_edge("work", "review")
    graph.add_conditional_edges("review", after_review, ["work", "confirm"])
    for node, following in pairwise(nodes[3:]):
        graph.add_edge(node.__name__, following.__name__)
    graph.add_edge("decide", END)
    return graph


def build_second() -> Any:
    return build((plan, work, review, confirm, sign, decide))


def first_state(facts: RunFacts) -> dict[str, Any]:
    return {"brief": facts.brief, "done": {}, "said": {}}


CHAIN = GraphSpec("chain", "1", "A chain with a loop", build, first_state, (Role.PM, Role.DEVELOPER, Role.LEAD))
SECOND_CHAIN = replace(CHAIN, version="2", title="A chain with a loop and a signature", build=build_second)
