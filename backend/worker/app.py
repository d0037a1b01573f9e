"""The worker: Celery brings run ids, one event loop drives many runs at once.

A message is a doorbell: it says that a run may be claimed, and is worth nothing else. Results are not kept, redelivery
is never relied on, and a broker that is away or wiped costs a delay, since the reaper rings again from Postgres.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from celery.signals import setup_logging, task_received
from celery.worker import state

from backend import logs
from backend.adapters.crashes import crash_point
from backend.settings import Settings
from backend.worker.bell import CeleryBell
from backend.worker.broker import make_app

if TYPE_CHECKING:
    from backend.worker.loop import LoopThread

EXIT_SECONDS = 8.0
"""How long the process may take to end after its runs are given back."""
_log = logging.getLogger(__name__)


def run(settings: Settings) -> int:
    """Be a worker until SIGTERM or SIGINT; returns the exit code of the process."""
    # Imported here: whoever only rings a bell needs no engine.
    from backend.adapters.bus import Waker
    from backend.worker.loop import LoopThread

    assert settings.redis_url is not None
    logs.setup(settings.log_level)
    setup_logging.connect(_keep_logs, weak=False)
    task_received.connect(_received, weak=False)
    waker = Waker(settings.redis_url.get_secret_value())
    loop = LoopThread(settings, CeleryBell(waker), waker)
    app = make_app(settings, loop)
    loop.start()
    worker = app.WorkController(
        app=app,
        concurrency=settings.engine.concurrency,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        hostname=f"company@{loop.name}",
    )
    _leave_when_asked(loop, settings.engine.shutdown_seconds + EXIT_SECONDS)
    try:
        worker.start()
    finally:
        loop.stop()
    return 0


def _leave_when_asked(loop: LoopThread, patience: float) -> None:
    """Leave at SIGTERM or SIGINT, on a thread of its own.

    A handler runs in the middle of whatever the main thread does, which may hold any lock, that of the log as well: it
    only writes a byte.
    """
    hears, tells = os.pipe()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os.write(tells, b"."))
    threading.Thread(target=_leave, args=(hears, loop, patience), name="leaving", daemon=True).start()


def _leave(hears: int, loop: LoopThread, patience: float) -> None:
    """Take no more and let the runs hold; a process that cannot end by itself is ended, and its leases run out."""
    os.read(hears, 1)
    _log.info("The worker is asked to leave; its runs hold at their next safe point.")
    state.should_stop = 0
    loop.drain()
    time.sleep(patience)
    os._exit(1)


def _keep_logs(**_: Any) -> None:
    """Celery leaves the logging of this process alone."""


def _received(**_: Any) -> None:
    """A doorbell has come and is not acknowledged yet."""
    crash_point("received")


def main() -> None:
    """The entry of `python -m backend.worker.app`."""
    sys.exit(run(Settings()))


if __name__ == "__main__":
    main()
