"""The event loops of the processes that serve, and how they collect garbage.

uvloop, which does the same in less time, where it is installed.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
from collections.abc import Coroutine
from typing import Any, TypeVar

_Result = TypeVar("_Result")


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A loop that is not running yet; asyncio's own on Windows, where there is no uvloop."""
    if importlib.util.find_spec("uvloop") is None:
        return asyncio.new_event_loop()
    import uvloop  # noqa: PLC0415 - as above

    return uvloop.new_event_loop()


def run(main: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a coroutine to its end on a loop of its own, as `asyncio.run` does."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)


def settle_down() -> None:
    """Let the collector look at what is made from now on, and less often: call it once the process is up.

    What was imported and made so far lives as long as the process. A run makes some thousand objects for each node,
    most of which die at once: by Python's own threshold the collector takes a twentieth of a busy worker's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 10, 10)
