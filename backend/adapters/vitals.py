"""Which workers live, and their figures: each publishes them under a key that expires, so that a dead one fades out.

The broker may be wiped or away: then a scrape shows fewer workers for some seconds, and nothing else happens.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from backend import metrics

EVERY_SECONDS = 5.0
_EXPIRES_SECONDS = 30
_PREFIX = "company:vitals:"
_log = logging.getLogger(__name__)


def client(url: str) -> Redis:
    """A client whose every call is bounded in time."""
    made: Redis = Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2, decode_responses=True)
    return made


async def publish(url: str, worker: str, *, every: float = EVERY_SECONDS) -> None:
    """Publish the figures of this process until cancelled, and take them back then; the broker may come and go."""
    redis = client(url)
    key = _PREFIX + worker
    try:
        while True:
            body = json.dumps({"worker": worker, "metrics": metrics.snapshot()})
            try:
                await redis.set(key, body, ex=_EXPIRES_SECONDS)
            except (RedisError, OSError) as error:
                _log.debug("The figures of this worker were not published: %s", error)
            await asyncio.sleep(every)
    finally:
        try:
            await redis.delete(key)
        except (RedisError, OSError):
            _log.debug("The broker is away; the figures of this worker expire by themselves.")
        await redis.aclose()


async def collect(redis: Redis) -> dict[str, str]:
    """The figures of the living workers by name; empty when the broker is away."""
    try:
        keys = [key async for key in redis.scan_iter(match=_PREFIX + "*", count=500)]
        bodies: list[Any] = await redis.mget(sorted(keys)) if keys else []
    except (RedisError, OSError):
        return {}
    read = [json.loads(body) for body in bodies if body]
    return {item["worker"]: item["metrics"] for item in read}
