"""How a compiled graph is driven under a saver; whoever measures the engine drives it the same way."""

from __future__ import annotations

import copy
from typing import Any

from langgraph.runtime import RunControl


async def drive(
    compiled: Any, saver: Any, begin: Any, config: Any, *, context: Any = None, control: RunControl | None = None
) -> None:
    """Run a graph until it ends, holds at a node edge or fails; what it did is told by nobody but the saver.

    Raises what the graph's nodes and the saver raise, and `GraphDrained` when `control` asked it to hold.
    """
    # A shallow copy, since LangGraph's own one checks and builds the whole graph again.
    graph = copy.copy(compiled)
    graph.checkpointer = saver
    async for _ in graph.astream(
        begin, config, context=context, durability="sync", stream_mode=[], output_keys=[], control=control
    ):
        pass
