"""Requests and tokens a minute of a provider, counted in Redis over all processes, or here while Redis is away."""

from __future__ import annotations

import asyncio
import hashlib
import math
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
_PLACES = 500


class ProviderLimits:
    """Makes callers wait until a provider may be asked again; every process with the same Redis counts together."""

    def __init__(self, redis_url: str | None) -> None:
        self._here = MovingWindowRateLimiter(MemoryStorage())
        self._pool = None if redis_url is None else ConnectionPool.from_url(redis_url)
        self._everywhere = None if self._pool is None else MovingWindowRateLimiter(_storage(self._pool))
        self._away_until = 0.0

    async def wait(self, provider: ProviderConfig, tokens: int = 0) -> None:
        """Return once a request of at most so many tokens may be sent, at once where no limit is configured.

        A request that is larger than a whole minute's tokens has a minute to itself.
        """
        account = f"{provider.base_url or OPENAI_URL} {provider.key_variable}"
        name = hashlib.sha256(account.encode()).hexdigest()[:32]
        if provider.tokens_per_minute is not None:
            # Each place in the window is an entry in Redis: a place stands for so many tokens that there are few.
            grain = max(1, provider.tokens_per_minute // _PLACES)
            item = RateLimitItemPerMinute(provider.tokens_per_minute // grain)
            await self._take(item, f"{name}/tokens", min(item.amount, math.ceil(tokens / grain)))
        if provider.requests_per_minute is not None:
            await self._take(RateLimitItemPerMinute(provider.requests_per_minute), name, 1)

    async def _take(self, item: RateLimitItemPerMinute, name: str, places: int) -> None:
        nap = await self._hit(item, name, places)
        while nap > 0:
            await asyncio.sleep(nap)
            nap = await self._hit(item, name, places)

    async def close(self) -> None:
        """Let go of the connections to Redis."""
        if self._pool is not None:
            await self._pool.disconnect()

    async def _hit(self, item: RateLimitItemPerMinute, name: str, places: int) -> float:
        """Take places in the window; return 0, or the seconds until it is worth asking again."""
        if self._everywhere is not None and time.monotonic() >= self._away_until:
            try:
                return await _hit(self._everywhere, item, name, places)
            except (StorageError, OSError):
                self._away_until = time.monotonic() + _AWAY_SECONDS
        return await _hit(self._here, item, name, places)


async def _hit(limiter: MovingWindowRateLimiter, item: RateLimitItemPerMinute, name: str, places: int) -> float:
    if await limiter.hit(item, "model-provider", name, cost=places):
        return 0.0
    window = await limiter.get_window_stats(item, "model-provider", name)
    return min(_LONGEST_NAP, max(0.01, window.reset_time - time.time()))


def _storage(pool: ConnectionPool) -> RedisStorage:
    # The address is the pool's; the scheme only chooses the kind of storage.
    options: dict[str, Any] = {"connection_pool": pool}
    return RedisStorage("async+redis://", wrap_exceptions=True, implementation="redispy", **options)
