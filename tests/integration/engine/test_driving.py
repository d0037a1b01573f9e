"""A graph is driven without what nobody reads: no tracer hears of its nodes, and what a node calls finds its config."""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.callbacks import AsyncCallbackHandler
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_config
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, Send, interrupt

from backend.engine.driving import drive, prepare


class State(TypedDict, total=False):
    said: Annotated[list[str], operator.add]
    part: str


class Listening(AsyncCallbackHandler):
    """Hears what LangChain tells its tracers."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    async def on_chain_start(self, serialized: Any, inputs: Any, **told: Any) -> None:
        self.heard.append(told["name"])


async def first(state: State) -> Any:
    thread = get_config()["configurable"]["thread_id"]
    return Command(update={"said": [f"first of {thread}"]}, goto=[Send("part", {"part": part}) for part in "ab"])


def part(state: State) -> State:
    return {"said": [f"part {state['part']}"]}


def ask(state: State) -> State:
    return {"said": [f"answered {interrupt('Really?')}"]}


async def onward(state: State) -> str:
    return "last" if len(state["said"]) == 4 else END


def last(state: State) -> State:
    return {"said": ["last"]}


def inner() -> Any:
    graph = StateGraph(State)
    graph.add_node("within", lambda state: {"said": ["within"]})
    graph.add_edge(START, "within")
    graph.add_edge("within", END)
    return graph.compile()


def build() -> Any:
    graph = StateGraph(State)
    graph.add_node("first", first, destinations=("part",))
    for name, node in {"part": part, "ask": ask, "last": last, "subgraph": inner()}.items():
        graph.add_node(name, node)
    graph.add_edge(START, "first")
    graph.add_edge("part", "ask")
    graph.add_conditional_edges("ask", onward, ["last", END])
    graph.add_edge("last", "subgraph")
    graph.add_edge("subgraph", END)
    return graph.compile()


async def result_of(compiled: Any, listener: Listening) -> Any:
    saver = InMemorySaver()
    config: Any = {"configurable": {"thread_id": "x"}, "callbacks": [listener]}
    await drive(compiled, saver, {"said": []}, config)
    stopped = await saver.aget_tuple(config)
    assert stopped is not None
    assert [channel for _, channel, _ in stopped.pending_writes or ()] == ["__interrupt__"]
    await drive(compiled, saver, Command(resume="yes"), config)
    ended = await saver.aget_tuple(config)
    assert ended is not None
    return ended.checkpoint["channel_values"]["said"]


async def test_prepared_nodes_do_the_same_and_no_tracer_hears_of_them() -> None:
    plain, prepared = Listening(), Listening()
    said = await result_of(prepare(build()), prepared)
    assert said[:5] == ["first of x", "part a", "part b", "answered yes", "last"]
    assert said == await result_of(build(), plain)
    assert "within" in said
    nodes = {"first", "part", "ask", "last"}
    assert nodes <= set(plain.heard)
    assert nodes.isdisjoint(prepared.heard)


async def test_what_a_node_raises_is_what_the_driver_gets() -> None:
    def fail(state: State) -> State:
        raise LookupError("nothing there")

    graph = StateGraph(State)
    graph.add_node("fail", fail)
    graph.add_edge(START, "fail")
    with pytest.raises(LookupError, match="nothing there") as raised:
        await drive(prepare(graph.compile()), InMemorySaver(), {"said": []}, {"configurable": {"thread_id": "x"}})
    # By this note the engine finds the visit that failed.
    assert "During task with name 'fail'" in raised.value.__notes__[0]
