"""Wake-ups over Redis pub/sub ("this run has new events", and nothing more), and messages into its lists.

Postgres is the truth and every follower polls it too, so a lost wake-up, a wiped Redis or one that is away costs a
delay. One connection a process listens for all of its followers.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

CHANNEL = "company:wakes"
WORDS = "company:words:"
"""What the models of a run say, a channel for each run: where nobody listens, nothing is carried."""
_WORDS_KEPT = 200
"""What waits for a slow follower; more is lost to it."""
POLL_SECONDS = 2.0
_PATIENCE = 2.0
"""Seconds that Redis may take for anything."""
_AWAY = (RedisError, OSError, TimeoutError)
_log = logging.getLogger(__name__)


class Waker:
    """Publishes wake-ups and fills queues; never raises. What is due while something is on its way goes together.

    A run of small nodes wakes as often as it commits, so this speaks over a connection of its own: the client's
    pipelines would take twice the time.
    """

    def __init__(self, url: str) -> None:
        self._redis: Redis = Redis.from_url(url, socket_timeout=_PATIENCE, socket_connect_timeout=_PATIENCE)
        # Without a timeout of its own for each step; there is one for all of them.
        self._line: Any = Redis.from_url(url, socket_timeout=None).connection_pool.make_connection()  # type: ignore[no-untyped-call]  # redis ships odd types
        self._due: dict[tuple[str, str, str], None] = {}
        self._telling: asyncio.Task[None] | None = None

    def wake(self, run_id: UUID) -> None:
        """Tell the followers of a run: now, or with others once what is on its way has arrived; nobody waits for it."""
        self._tell("PUBLISH", CHANNEL, str(run_id))

    def push(self, queue: str, message: str) -> None:
        """Put a message into a queue, the same way: a list that others take from at its other end."""
        self._tell("LPUSH", queue, message)

    def _tell(self, *command: str) -> None:
        verb, where, what = command
        self._due[verb, where, what] = None
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell_all())

    async def _tell_all(self) -> None:
        while self._due:
            due, self._due = self._due, {}
            try:
                await self._send(due)
            except _AWAY as error:
                pushed = sum(verb == "LPUSH" for verb, _, _ in due)
                level = logging.WARNING if pushed else logging.DEBUG
                _log.log(level, "%s messages and %s wake-ups were lost: %s", pushed, len(due) - pushed, error)

    async def _send(self, commands: Collection[tuple[str, ...]]) -> None:
        """Send commands over the line, which connects by itself; one that was cut is found out by using it."""
        packed = self._line.pack_commands(commands)
        for connected in (self._line.is_connected, False):
            try:
                async with asyncio.timeout(_PATIENCE):
                    await self._line.send_packed_command(packed)
                    refused = [answer for _ in commands if isinstance(answer := await self._answer(), Exception)]
            except _AWAY:
                await self._line.disconnect(nowait=True)
                if not connected:
                    raise
            else:
                if refused:
                    raise refused[0]
                return

    async def _answer(self) -> object:
        """The next answer; a refusal is one, and those after it are still to be read."""
        try:
            return await self._line.read_response()
        except ResponseError as refusal:
            return refusal

    async def say(self, run_id: UUID, words: bytes) -> bool:
        """Tell who listens to a run at this moment what a model says; whether anybody did."""
        try:
            return bool(await self._redis.publish(WORDS + str(run_id), words))
        except _AWAY as error:
            _log.debug("Words were lost: %s", error)
            return False

    async def close(self) -> None:
        """Close the connection, once what is due has been told."""
        if self._telling is not None:
            await asyncio.wait([self._telling])
        with suppress(*_AWAY):
            await self._line.disconnect(nowait=True)
            await self._redis.aclose()


class Followers:
    """Hands wake-ups to whoever follows a run in this process, and one every two seconds anyway."""

    def __init__(self, url: str, *, poll_seconds: float = POLL_SECONDS) -> None:
        self._url, self._poll = url, poll_seconds
        self._events: dict[UUID | None, set[asyncio.Event]] = defaultdict(set)
        self._listening: asyncio.Task[None] | None = None
        self._listeners: dict[UUID, set[asyncio.Queue[bytes]]] = defaultdict(set)
        self._hearing: dict[UUID, asyncio.Task[None]] = {}

    async def subscribe(self, run_id: UUID | None) -> AsyncIterator[None]:
        """Yield once for each wake-up of a run (None: of any), and at least every poll interval, until closed."""
        event = asyncio.Event()
        self._events[run_id].add(event)
        if self._listening is None or self._listening.done():
            self._listening = asyncio.create_task(self._persist(self._hear), name="wake-ups")
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
            if not self._events and self._listening is not None:
                # Every commit of the company wakes: a process in which nobody follows has better things to do.
                self._listening.cancel()
                self._listening = None

    async def words(self, run_id: UUID) -> AsyncIterator[bytes]:
        """Yield what the models of a run say from now on, until closed; who is slow misses some."""
        said: asyncio.Queue[bytes] = asyncio.Queue(_WORDS_KEPT)
        listeners = self._listeners[run_id]
        listeners.add(said)
        if run_id not in self._hearing:
            hear = partial(_hear_words, WORDS + str(run_id), listeners)
            self._hearing[run_id] = asyncio.create_task(self._persist(hear), name=f"words {run_id}")
        try:
            while True:
                yield await said.get()
        finally:
            listeners.discard(said)
            if not listeners:
                del self._listeners[run_id]
                self._hearing.pop(run_id).cancel()

    async def close(self) -> None:
        """Stop listening."""
        tasks = [*self._hearing.values(), *filter(None, [self._listening])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _persist(self, hear: Callable[[Any], Awaitable[None]]) -> None:
        """Hear what comes over a connection, and over a new one when it breaks."""
        while True:
            redis: Redis = Redis.from_url(self._url, socket_timeout=None, socket_connect_timeout=2)
            try:
                await hear(redis)
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
                elif message["type"] == "subscribe":
                    # What was told while nobody listened is only found by looking.
                    self._tell(*self._events)

    def _tell(self, *runs: UUID | None) -> None:
        for run_id in {*runs, None}:
            for event in self._events.get(run_id, ()):
                event.set()


async def _hear_words(channel: str, listeners: set[asyncio.Queue[bytes]], redis: Any) -> None:
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(channel)
        async for message in pubsub.listen():
            for said in listeners if message["type"] == "message" else ():
                with suppress(asyncio.QueueFull):
                    said.put_nowait(message["data"])
