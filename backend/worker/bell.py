"""The bell of a process: doorbells to the workers and wake-ups to followers, both over one connection to Redis.

A doorbell is a Celery message (its protocol 2) that says which run may be claimed. It is written here in full, since
every run needs one and Celery's own way to send takes a thread and a connection of its own (ADR 40).
"""

from __future__ import annotations

from uuid import UUID, uuid4

import orjson

from backend.adapters.bus import Waker
from backend.settings import Settings

QUEUE = "company.runs"
EXECUTE = "run.execute"
_EMBEDDED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


class CeleryBell:
    """Rings and wakes; neither ever raises nor is waited for, since Postgres is the truth and the reaper makes good."""

    def __init__(self, waker: Waker) -> None:
        self._waker = waker

    def ring(self, run_id: UUID) -> None:
        """Tell the workers that a run may be claimed."""
        self._waker.push(QUEUE, doorbell(run_id))

    def wake(self, run_id: UUID) -> None:
        """Tell the followers of a run."""
        self._waker.wake(run_id)

    async def say(self, run_id: UUID, words: bytes) -> bool:
        """Tell live followers what a model says; whether anybody heard it."""
        return await self._waker.say(run_id, words)

    async def close(self) -> None:
        """Close the connection, once what is due has been told."""
        await self._waker.close()


def doorbell(run_id: UUID) -> str:
    """The message as Celery's workers take it from a list in Redis; each has an id of its own."""
    own = uuid4().hex
    message = orjson.dumps(
        {
            "body": orjson.dumps([[str(run_id)], {}, _EMBEDDED]).decode(),
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {"lang": "py", "task": EXECUTE, "id": own, "root_id": own, "ignore_result": True},
            "properties": {
                "correlation_id": own,
                "delivery_tag": own,
                "delivery_mode": 2,
                "priority": 0,
                "delivery_info": {"exchange": "", "routing_key": QUEUE},
            },
        }
    )
    return message.decode()


def make_bell(settings: Settings) -> CeleryBell:
    """The bell of a process that is no worker: the api, the command line."""
    assert settings.redis_url is not None
    return CeleryBell(Waker(settings.redis_url.get_secret_value()))
