"""Workers and apis by fork: everything is imported once, so that a storm can start hundreds of them.

What a process becomes is named in its environment: a worker, or with `NURSERY_ROLE=api` an api on `COMPANY_PORT`;
with `NURSERY_CLOCK_SECONDS` its wall clock is off by so much (see `clocks`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.acceptance.faults import clocks
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[3]
_PARENT_DEATH = 1
LATE = (
    "anyio._backends._asyncio",
    "backend.worker.bell",
    "backend.worker.loop",
    "billiard.pool",
    "celery.app.control",
    "celery.concurrency.base",
    "celery.fixups.django",
    "celery.loaders.app",
    "celery.worker.autoscale",
    "celery.worker.consumer",
    "celery.worker.strategy",
    "h11",
    "httpcore2",
    "langchain_core.tracers.langchain",
    "langchain_openai",
    "langgraph.graph.state",
    "langgraph.stream.transformers",
    "openai.resources.chat.completions.completions",
    "redis.asyncio",
    "valkey.asyncio",
)
"""What processes import on their way to a first run: most of the time that they would take to begin."""


class Nursery:
    """A process that becomes a worker as often as it is asked to."""

    def __init__(self, log: Path) -> None:
        self.path = log
        self._log = log.open("wb")
        environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self._parent = subprocess.Popen(
            [sys.executable, "-m", "tests.acceptance.faults.nursery"],
            cwd=ROOT,
            env=environment | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
            text=True,
        )
        self.alive: list[int] = []

    def start(self, environment: Mapping[str, str]) -> int:
        """Start a worker or an api; returns its process id."""
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write(json.dumps(dict(environment)) + "\n")
        self._parent.stdin.flush()
        self.alive.append(int(self._parent.stdout.readline()))
        return self.alive[-1]

    def kill(self, pid: int) -> None:
        """End a worker without any warning."""
        self.alive.remove(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    async def gone(self, pid: int) -> None:
        """Wait until a worker has ended by itself."""
        async with asyncio.timeout(PATIENCE):
            while Path(f"/proc/{pid}").exists():
                await asyncio.sleep(0.02)
        self.alive.remove(pid)

    def clear(self) -> None:
        """End all workers that are left."""
        for pid in list(self.alive):
            self.kill(pid)

    def close(self) -> None:
        """End everything."""
        os.killpg(self._parent.pid, signal.SIGKILL)
        self._parent.wait()
        for stream in (self._parent.stdin, self._parent.stdout, self._log):
            if stream is not None:
                stream.close()


def _serve() -> None:
    clocks.install()
    from backend.cli import server
    from backend.worker import app

    for name in LATE:
        importlib.import_module(name)
    # What every child shares is not looked through by each of them, which would copy it.
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            # Nobody outlives the tests, however they end.
            ctypes.CDLL(None).prctl(_PARENT_DEATH, signal.SIGKILL)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(2, 1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.environ.update(json.loads(line))
            sys.path[:0] = os.environ["PYTHONPATH"].split(":")
            clocks.shift(float(os.environ.get("NURSERY_CLOCK_SECONDS", 0)))
            os._exit(_be(server, app))
        os.write(1, f"{child}\n".encode())


def _be(server: Any, app: Any) -> int:
    from backend.settings import Settings

    if os.environ.get("NURSERY_ROLE") != "api":
        code: int = app.run(Settings())
        return code
    server.serve(Settings())
    return 0


if __name__ == "__main__":
    _serve()
