"""The Celery application of a worker: how it takes messages; `bell` writes them."""

from __future__ import annotations

from celery import Celery
from kombu.transport import virtual
from kombu.transport.redis import Channel, QoS

from backend.settings import Settings
from backend.worker.bell import QUEUE


class InHand(QoS):
    """Messages in hand, counted in memory and noted nowhere else: the notes would cost two round trips a message."""

    append = virtual.QoS.append
    ack = virtual.QoS.ack
    reject = virtual.QoS.reject
    restore_visible = virtual.QoS.restore_visible


def make_app(settings: Settings) -> Celery:
    """The application of a process, with the broker that the settings name.

    Messages in hand are not put back when a connection closes: with the broker away that ends the worker, and the
    reaper rings again in any case.
    """
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
            "socket_timeout": 10,
            "socket_connect_timeout": 2,
            "retry_policy": {"max_retries": 1, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.2},
        },
        redis_socket_timeout=10,
        redis_socket_connect_timeout=2,
    )
    return app
