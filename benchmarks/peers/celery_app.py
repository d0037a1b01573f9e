"""A Celery chain: seven tasks that hand the state on, in prefork children, acknowledged when they are done.

Results are kept where PEER_RESULTS says, as whoever asks later needs them to be; a bare chain keeps none.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import redis
import work
from celery import Celery

RESULTS = os.environ.get("PEER_RESULTS")
app = Celery("bench", broker=os.environ.get("PEER_REDIS_URL"), backend=RESULTS, set_as_current=False)
app.conf.update(
    task_default_queue="bench.chain",
    task_serializer="json",
    task_ignore_result=RESULTS is None,
    task_acks_late=True,
    worker_hijack_root_logger=False,
)
DONE = "bench:done"
STARTED = "bench:started"
_redis: list[Any] = []


def broker() -> Any:
    """The broker, asked directly: there the last task of a chain says that it is done."""
    if not _redis:
        _redis.append(redis.Redis.from_url(os.environ["PEER_REDIS_URL"]))
    return _redis[0]


@app.task(name="node")
def node(state: dict[str, Any], number: int, run: int) -> dict[str, Any]:
    state = state | {f"part_{number}": work.part(number, run)}
    if number == work.NODES:
        broker().incr(DONE)
    return state


def begin(run: int) -> str:
    """Send the chain; returns the identity of its last task."""
    from celery import chain

    first, *rest = range(1, work.NODES + 1)
    sent = chain(node.s({}, first, run), *(node.s(number, run) for number in rest)).apply_async()
    return str(sent.id)


def waits(state: dict[str, Any], number: int, run: int) -> dict[str, Any]:
    """A node that waits as for a model."""
    time.sleep(2)
    return node(state, number, run)


asks = app.task(waits, name="waits")


@app.task(name="started", acks_late=False)
def started() -> None:
    """Say when the task was begun."""
    broker().rpush(STARTED, repr(time.time()))
