"""Ends a worker whose event loop stands still: its leases would be kept alive for runs that nobody drives."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from functools import partial

_log = logging.getLogger(__name__)
EXIT_CODE = 70
_ROUNDS = 30


class Watchdog:
    """A thread that asks the loop for a sign every so often; so many times in a row without one, and it bites.

    It counts its own rounds instead of looking at a clock: a process that was frozen as a whole missed none of them.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, every: float, rounds: int, bite: Callable[[], None]) -> None:
        self._loop, self._every, self._rounds, self._bite = loop, every, rounds, bite
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch; called before the loop does anything that may block."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        missed, sign = 0, threading.Event()
        self._ask(sign)
        while not self._stop.wait(self._every):
            missed = 0 if sign.is_set() else missed + 1
            if missed >= self._rounds:
                self._bite()
                return
            if sign.is_set():
                sign = threading.Event()
                self._ask(sign)

    def _ask(self, sign: threading.Event) -> None:
        try:
            self._loop.call_soon_threadsafe(sign.set)
        except RuntimeError:
            self._stop.set()  # the loop is closed


def end_process(loop_thread: threading.Thread, seconds: float) -> None:
    """Say where the loop stands still, and end the process: whoever started it starts another."""
    frame = sys._current_frames().get(loop_thread.ident or 0)
    where = "".join(traceback.format_stack(frame)[-3:]) if frame else "nobody knows where"
    _log.critical("The event loop has stood still for %.0f seconds; the worker ends. It stands at:\n%s", seconds, where)
    os._exit(EXIT_CODE)


def of_worker(loop: asyncio.AbstractEventLoop, loop_thread: threading.Thread, *, seconds: float) -> Watchdog:
    """The watchdog of a worker: ends the process when its loop stood still for so long."""
    bite = partial(end_process, loop_thread, seconds)
    return Watchdog(loop, every=seconds / _ROUNDS, rounds=_ROUNDS, bite=bite)
