"""Requests a minute of a provider, counted in Redis over all processes, or in this process while Redis is away."""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import Any

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import StorageError
from redis.asyncio import ConnectionPool

from backend.domain.config import OPENAI_URL, ProviderConfig

_AWAY_SECONDS = 30.0
_LONGEST_NAP = 5.0


class ProviderLimits:
    """Makes callers wait until a provider may be asked again; every process with the same Redis counts together."""

    def __init__(self, redis_url: str | None) -> None:
        self._here = MovingWindowRateLimiter(MemoryStorage())
        self._pool = None if redis_url is None else ConnectionPool.from_url(redis_url)
        self._everywhere = None if self._pool is None else MovingWindowRateLimiter(_storage(self._pool))
        self._away_until = 0.0

    async def wait(self, provider: ProviderConfig) -> None:
        """Return once a request may be sent, at once where no limit is configured."""
        if provider.requests_per_minute is None:
            return
        item = RateLimitItemPerMinute(provider.requests_per_minute)
        account = f"{provider.base_url or OPENAI_URL} {provider.key_variable}"
        name = hashlib.sha256(account.encode()).hexdigest()[:32]
        nap = await self._hit(item, name)
        while nap > 0:
            await asyncio.sleep(nap)
            nap = await self._hit(item, name)

    async def close(self) -> None:
        """Let go of the connections to Redis."""
        if self._pool is not None:
            await self._pool.disconnect()

    async def _hit(self, item: RateLimitItemPerMinute, name: str) -> float:
        """Take a place in the window; return 0, or the seconds until it is worth asking again."""
        if self._everywhere is not None and time.monotonic() >= self._away_until:
            try:
                return await _hit(self._everywhere, item, name)
            except (StorageError, OSError):
                self._away_until = time.monotonic() + _AWAY_SECONDS
        return await _hit(self._here, item, name)


async def _hit(limiter: MovingWindowRateLimiter, item: RateLimitItemPerMinute, name: str) -> float:
    if await limiter.hit(item, "model-provider", name):
        return 0.0
    window = await limiter.get_window_stats(item, "model-provider", name)
    return min(_LONGEST_NAP, max(0.01, window.reset_time - time.time()))


def _storage(pool: ConnectionPool) -> RedisStorage:
    # The address is the pool's; the scheme only chooses the kind of storage.
    options: dict[str, Any] = {"connection_pool": pool}
    return RedisStorage("async+redis://", wrap_exceptions=True, implementation="redispy", **options)
