"""The Celery application of a worker: how it takes messages; `bell` writes them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.concurrency.base import BasePool, apply_target
from kombu.transport import virtual
from kombu.transport.redis import Channel, QoS

from backend.settings import Settings
from backend.worker.bell import EXECUTE, QUEUE

if TYPE_CHECKING:
    from backend.worker.loop import LoopThread


class InHand(QoS):
    """Messages in hand, counted in memory and noted nowhere else: the notes would cost two round trips a message.

    None is taken from the queue without room for its run: it is there for a worker that has.
    """

    loop: LoopThread

    append = virtual.QoS.append
    ack = virtual.QoS.ack
    reject = virtual.QoS.reject
    restore_visible = virtual.QoS.restore_visible

    def can_consume(self) -> bool:
        """Whether a message may be taken; what no limit is set for, orders to the worker, always may."""
        return not self.prefetch_count or self.loop.has_room


class Handing(BasePool):  # type: ignore[misc]  # Celery ships no types
    """A pool without threads: a task only hands its run to the event loop, in which all runs of the worker are."""

    body_can_be_buffer = True
    signal_safe = False
    on_apply = staticmethod(apply_target)
    loop: LoopThread

    def register_with_event_loop(self, hub: Any) -> None:
        """Have Celery's loop look for messages once there is room again."""
        hub.add_reader(self.loop.room, os.read, self.loop.room, 4096)

    def on_stop(self) -> None:
        """Wait for the runs in hand."""
        self.loop.wait()


def make_app(settings: Settings, loop: LoopThread) -> Celery:
    """The application of a worker, with the broker that the settings name; its one task hands runs to `loop`.

    Messages in hand are not put back when a connection closes: with the broker away that ends the worker, and the
    reaper rings again in any case.
    """
    InHand.loop = Handing.loop = loop
    Channel.QoS = InHand
    Channel.do_restore = False
    assert settings.redis_url is not None
    engine = settings.engine
    app = Celery("company", broker=settings.redis_url.get_secret_value(), set_as_current=False)
    app.conf.update(
        task_default_queue=QUEUE,
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        result_backend=None,
        # Acknowledged when it is taken up: an acknowledgement of a connection that is gone ends the worker.
        task_acks_late=False,
        task_reject_on_worker_lost=False,
        # Not zero, which would lift all limits: `InHand` lets a message be taken where there is room.
        worker_prefetch_multiplier=1,
        worker_pool=Handing,
        worker_concurrency=engine.concurrency,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=2,
        broker_transport_options={
            "socket_timeout": 10,
            "socket_connect_timeout": 2,
            "retry_policy": {"max_retries": 1, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.2},
        },
        redis_socket_timeout=10,
        redis_socket_connect_timeout=2,
    )
    app.task(name=EXECUTE, ignore_result=True)(loop.take)
    return app
