"""Wake-ups over Redis pub/sub: "this run has new events", and nothing more.

Postgres is the truth and every follower polls it too, so a lost wake-up, a wiped Redis or one that is away costs a
delay. One connection a process listens for all of its followers.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError

CHANNEL = "company:wakes"
POLL_SECONDS = 2.0
_AWAY = (RedisError, OSError, TimeoutError)
_log = logging.getLogger(__name__)


class Waker:
    """Publishes wake-ups; never raises."""

    def __init__(self, url: str) -> None:
        self._redis: Redis = Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2)

    async def wake(self, run_id: UUID) -> None:
        """Tell the followers of a run."""
        try:
            await self._redis.publish(CHANNEL, str(run_id))
        except _AWAY as error:
            _log.debug("A wake-up was lost: %s", error)

    async def close(self) -> None:
        """Close the connection."""
        with suppress(*_AWAY):
            await self._redis.aclose()


class Followers:
    """Hands wake-ups to whoever follows a run in this process, and one every two seconds anyway."""

    def __init__(self, url: str, *, poll_seconds: float = POLL_SECONDS) -> None:
        self._url, self._poll = url, poll_seconds
        self._events: dict[UUID | None, set[asyncio.Event]] = defaultdict(set)
        self._listening: asyncio.Task[None] | None = None

    async def subscribe(self, run_id: UUID | None) -> AsyncIterator[None]:
        """Yield once for each wake-up of a run (None: of any), and at least every poll interval, until closed."""
        if self._listening is None or self._listening.done():
            self._listening = asyncio.create_task(self._listen(), name="wake-ups")
        event = asyncio.Event()
        self._events[run_id].add(event)
        try:
            while True:
                with suppress(TimeoutError):
                    await asyncio.wait_for(event.wait(), self._poll)
                event.clear()
                yield None
        finally:
            self._events[run_id].discard(event)
            if not self._events[run_id]:
                del self._events[run_id]

    async def close(self) -> None:
        """Stop listening."""
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])

    async def _listen(self) -> None:
        while True:
            redis: Redis = Redis.from_url(self._url, socket_timeout=None, socket_connect_timeout=2)
            try:
                await self._hear(redis)
            except _AWAY as error:
                _log.debug("Wake-ups are away: %s", error)
            finally:
                with suppress(*_AWAY):
                    await redis.aclose()
            await asyncio.sleep(1)

    async def _hear(self, redis: Any) -> None:
        async with redis.pubsub() as pubsub:
            await pubsub.subscribe(CHANNEL)
            async for message in pubsub.listen():
                if message["type"] == "message":
                    with suppress(ValueError):
                        self._tell(UUID(message["data"].decode()))

    def _tell(self, run_id: UUID) -> None:
        for event in (*self._events.get(run_id, ()), *self._events.get(None, ())):
            event.set()
