"""How a compiled graph is driven under a saver; whoever measures the engine drives it the same way."""

from __future__ import annotations

import asyncio
import copy
from contextlib import nullcontext
from contextvars import ContextVar
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config
from langgraph.runtime import RunControl


class _Untraced(Runnable[Any, Any]):
    """A node and what writes its result to the channels, one after the other, told to no tracer.

    LangGraph's own sequence makes a task, a context and three callback managers for each node, which is a quarter of
    the time that its loop takes. The run store is the trace of a run.
    """

    def __init__(self, bound: Runnable[Any, Any], writers: list[Runnable[Any, Any]]) -> None:
        self._bound = bound
        self._writers = writers

    def invoke(self, input: Any, config: RunnableConfig | None = None, **options: Any) -> Any:  # noqa: A002 - its name
        """The same without an event loop, which LangGraph asks of every runnable."""
        inner = _inner(config)
        told = var_child_runnable_config.set(inner)
        try:
            output = self._bound.invoke(input, inner, **options)
        finally:
            var_child_runnable_config.reset(told)
        for writer in self._writers:
            output = writer.invoke(output, inner)
        return output

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **options: Any) -> Any:  # noqa: A002 - so
        """Run the node, then its writers; what the node calls finds the config in the context."""
        inner = _inner(config)
        async with _slots.get() or nullcontext():
            told = var_child_runnable_config.set(inner)
            try:
                output = await self._bound.ainvoke(input, inner, **options)
            finally:
                var_child_runnable_config.reset(told)
            for writer in self._writers:
                output = await writer.ainvoke(output, inner)
        return output


def _inner(config: RunnableConfig | None) -> RunnableConfig:
    """The config for what is in a node: the name in it is the node's own."""
    inner = RunnableConfig() if config is None else config.copy()
    inner.pop("run_name", None)
    return inner


def prepare(compiled: Any) -> Any:
    """Take the tracing out of a compiled graph's nodes, and return it; graphs inside its nodes stay as they are."""
    for node in compiled.nodes.values():
        writers = node.flat_writers
        if writers and node.node is not None and node.node is not writers[0]:
            # LangGraph computes this attribute once and looks at it for each task.
            node.__dict__["node"] = _Untraced(node.bound, writers)
    return compiled


_slots: ContextVar[asyncio.Semaphore | None] = ContextVar("slots", default=None)
"""How many nodes of the graph that is driven may run at once."""


async def drive(
    compiled: Any,
    saver: Any,
    begin: Any,
    config: Any,
    *,
    context: Any = None,
    control: RunControl | None = None,
    at_once: int = 16,
) -> None:
    """Run a graph until it ends, holds at a node edge or fails; what it did is told by nobody but the saver.

    Up to `at_once` of its nodes run at the same time. LangGraph's own `max_concurrency` would let the commit of a node
    that is done wait behind all nodes that have not begun. Raises what the graph's nodes and the saver raise, and
    `GraphDrained` when `control` asked it to hold.
    """
    # A shallow copy, since LangGraph's own one checks and builds the whole graph again.
    graph = copy.copy(compiled)
    graph.checkpointer = saver
    limited = _slots.set(asyncio.Semaphore(at_once))
    try:
        async for _ in graph.astream(
            begin, config, context=context, durability="sync", stream_mode=[], output_keys=[], control=control
        ):
            pass
    finally:
        _slots.reset(limited)
