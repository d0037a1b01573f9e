"""The company's own processes (api, worker) as children: watched, restarted, drained at the end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from backend.engine.embedded.processes import Child, end, spawn

DRAIN_SECONDS = 30.0
"""How long a child may take after SIGTERM to hand its runs back."""
FIRST_DELAY = 0.5
LONGEST_DELAY = 30.0
HEALTHY_SECONDS = 60.0
"""A child that lived this long is restarted at once when it ends."""


@dataclass
class _Seat:
    """One child and how patiently it is restarted."""

    name: str
    argv: Sequence[str]
    child: Child | None = None
    started: float = 0.0
    due: float = 0.0
    delay: float = 0.0
    restarts: int = 0


@dataclass
class Children:
    """Runs commands (absolute program first) until it is left; `logs` gets a file for each.

    Everything is started by a thread of its own, which lives as long as the children do: the kernel ends them when the
    thread that started them ends.
    """

    commands: Mapping[str, Sequence[str]]
    environment: Mapping[str, str]
    logs: Path
    _seats: list[_Seat] = field(default_factory=list)
    _ending: threading.Event = field(default_factory=threading.Event)
    _started: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Start all; returns when each was started once."""
        self._seats = [_Seat(name, argv) for name, argv in self.commands.items()]
        self._thread = threading.Thread(target=self._watch, name="children", daemon=True)
        self._thread.start()
        self._started.wait()

    def stop(self) -> None:
        """Ask all to end at once, wait while they drain, and end by force those that do not."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()

    def restarts(self) -> dict[str, int]:
        """How often each child had to be started again."""
        return {seat.name: seat.restarts for seat in self._seats}

    def pids(self) -> dict[str, int]:
        """The process ids of the children that live."""
        return {
            seat.name: seat.child.process.pid
            for seat in self._seats
            if seat.child is not None and seat.child.process.poll() is None
        }

    def __enter__(self) -> Self:
        """Start all."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop all."""
        self.stop()

    def _watch(self) -> None:
        while not self._ending.is_set():
            for seat in self._seats:
                self._tend(seat)
            self._started.set()
            self._ending.wait(0.1)
        for seat in self._seats:
            if seat.child is not None and seat.child.process.poll() is None:
                seat.child.process.send_signal(signal.SIGTERM)
        until = time.monotonic() + DRAIN_SECONDS
        for seat in self._seats:
            if seat.child is not None:
                end(seat.child, ((signal.SIGTERM, max(0.1, until - time.monotonic())),))

    def _tend(self, seat: _Seat) -> None:
        now = time.monotonic()
        if seat.child is not None:
            if seat.child.process.poll() is None:
                return
            healthy = now - seat.started > HEALTHY_SECONDS
            seat.delay = 0.0 if healthy else min(LONGEST_DELAY, max(FIRST_DELAY, seat.delay * 2))
            seat.due, seat.child = now + seat.delay, None
            seat.restarts += 1
        if now >= seat.due:
            seat.child = spawn(seat.name, seat.argv, log=self.logs / f"{seat.name}.log", environment=self.environment)
            seat.started = now


def wait_for_signal() -> signal.Signals:
    """Block the main thread until somebody asks the process to end (SIGTERM, or Ctrl-C)."""
    hears, tells = os.pipe()
    # A handler runs in the middle of anything and may wait for no lock.
    handlers = {
        number: signal.signal(number, lambda got, _frame: os.write(tells, bytes([got])))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        return signal.Signals(os.read(hears, 1)[0])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(hears)
        os.close(tells)
