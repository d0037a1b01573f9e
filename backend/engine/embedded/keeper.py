"""Keeps servers running: starts them, starts them again when they end by themselves, and stops them at the end.

All of it happens on one thread that lives as long as the servers do, since the kernel ends a child when the thread that
started it ends.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from backend.engine.embedded.processes import Child
from backend.errors import Unavailable

LOOK_SECONDS = 0.2
FIRST_DELAY = 0.5
LONGEST_DELAY = 15.0
_log = logging.getLogger(__name__)


class Server(Protocol):
    """A server that runs."""

    @property
    def child(self) -> Child:
        """Its process."""
        ...

    @property
    def port(self) -> int:
        """Where it listens on loopback."""
        ...

    def stop(self) -> None:
        """Stop it within a bound."""
        ...


Starter = Callable[[int | None], Server]
"""Starts a server on the given port, or on one of its own choice; returns when it takes connections."""


@dataclass
class _Post:
    start: Starter
    server: Server
    failures: int = 0
    due: float = 0.0


class Keeper:
    """Keeps what the starters start, in their order; stops in the other."""

    def __init__(self, starters: Sequence[Starter]) -> None:
        """Nothing runs before `start`."""
        self._starters = starters
        self._posts: list[_Post] = []
        self._ready = threading.Event()
        self._ending = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._keep, name="keeper", daemon=True)

    @property
    def servers(self) -> list[Server]:
        """The servers, in the order of their starters."""
        return [post.server for post in self._posts]

    def start(self) -> None:
        """Start all and return when all take connections; the first failure is raised here, and nothing runs then."""
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def stop(self) -> None:
        """Stop all; stopping twice is the same as once."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()

    def _keep(self) -> None:
        try:
            for start in self._starters:
                if not self._ending.is_set():
                    self._posts.append(_Post(start, start(None)))
        except (Unavailable, OSError) as error:
            self._failure = error
            self._ending.set()
        self._ready.set()
        while not self._ending.wait(LOOK_SECONDS):
            for post in self._posts:
                self._tend(post)
        for post in reversed(self._posts):
            post.server.stop()

    def _tend(self, post: _Post) -> None:
        child = post.server.child
        if child.process.poll() is None or time.monotonic() < post.due:
            return
        _log.warning("%s ended (exit code %s) and is started again.", child.name, child.process.returncode)
        try:
            post.server = post.start(post.server.port)
            post.failures = 0
        except (Unavailable, OSError) as error:
            post.failures += 1
            post.due = time.monotonic() + min(LONGEST_DELAY, FIRST_DELAY * 2**post.failures)
            _log.error("%s could not be started again: %s", child.name, error)
