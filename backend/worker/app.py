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
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.signals import setup_logging
from celery.worker import state

from backend import logs
from backend.settings import Settings

if TYPE_CHECKING:
    from backend.worker.loop import LoopThread

QUEUE = "company.runs"
EXECUTE = "run.execute"
EXIT_SECONDS = 8.0
"""How long the process may take to end after its runs are given back."""
_log = logging.getLogger(__name__)


def make_app(settings: Settings) -> Celery:
    """The Celery application; the same settings in the worker and wherever a bell is rung."""
    assert settings.redis_url is not None
    engine = settings.engine
    app = Celery("company", broker=settings.redis_url.get_secret_value(), set_as_current=False)
    app.conf.update(
        task_default_queue=QUEUE,
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        result_backend=None,
        task_acks_late=True,
        task_reject_on_worker_lost=False,
        worker_prefetch_multiplier=1,
        worker_pool="threads",
        worker_concurrency=engine.concurrency,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=2,
        broker_transport_options={
            # Above the longest time a message may be unacknowledged: a slice and the node that overruns it.
            "visibility_timeout": int(engine.slice_seconds + 2 * 3600),
            "unacked_restore_limit": 100,
            "socket_timeout": 10,
            "socket_connect_timeout": 2,
            "retry_policy": {"max_retries": 1, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.2},
        },
        redis_socket_timeout=10,
        redis_socket_connect_timeout=2,
    )
    return app


def run(settings: Settings) -> int:
    """Be a worker until SIGTERM or SIGINT; returns the exit code of the process."""
    # Imported here: whoever only rings a bell needs no engine.
    from backend.adapters.bus import Waker
    from backend.worker.bell import CeleryBell
    from backend.worker.loop import LoopThread

    assert settings.redis_url is not None
    logs.setup(settings.log_level)
    setup_logging.connect(_keep_logs, weak=False)
    app = make_app(settings)
    waker = Waker(settings.redis_url.get_secret_value())
    loop = LoopThread(settings, CeleryBell(app, waker), waker)
    loop.start()
    _register(app, loop.execute)
    worker = app.WorkController(
        app=app,
        pool_cls="threads",
        concurrency=settings.engine.concurrency,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        hostname=f"company@{loop.name}",
    )
    patience = settings.engine.shutdown_seconds + EXIT_SECONDS
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _leave(loop, patience))
    try:
        worker.start()
    finally:
        loop.stop()
    return 0


def _leave(loop: LoopThread, patience: float) -> None:
    """Take no more and let the runs hold; a process that cannot end by itself is ended, and its leases run out."""
    if state.should_stop is None:
        _log.info("The worker is asked to leave; its runs hold at their next safe point.")
    state.should_stop = 0
    loop.drain()
    watchdog = threading.Timer(patience, os._exit, (1,))
    watchdog.daemon = True
    watchdog.start()


def _keep_logs(**_: Any) -> None:
    """Celery leaves the logging of this process alone."""


def _register(app: Celery, execute_run: Callable[[str], None]) -> None:
    @app.task(name=EXECUTE, ignore_result=True)  # type: ignore[untyped-decorator]  # Celery ships no types
    def execute(run_id: str) -> None:
        execute_run(run_id)


def main() -> None:
    """The entry of `python -m backend.worker.app`."""
    sys.exit(run(Settings()))


if __name__ == "__main__":
    main()
