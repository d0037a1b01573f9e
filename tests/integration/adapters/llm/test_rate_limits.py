"""Requests a minute are counted over processes by Redis, and in the process while Redis is away."""

from __future__ import annotations

import asyncio

import pytest

from backend.adapters.llm.limits import ProviderLimits
from backend.domain.config import ProviderConfig

ENDPOINT = ProviderConfig(base_url="http://127.0.0.1:9/v1", requests_per_minute=3)


async def passes(limits: ProviderLimits, endpoint: ProviderConfig = ENDPOINT) -> bool:
    try:
        await asyncio.wait_for(limits.wait(endpoint), 0.2)
    except TimeoutError:
        return False
    return True


async def test_without_a_limit_nobody_waits() -> None:
    limits = ProviderLimits(None)
    assert all([await passes(limits, ProviderConfig(base_url="http://x")) for _ in range(100)])


async def test_processes_count_together_in_redis(redis_url: str) -> None:
    first, second = ProviderLimits(redis_url), ProviderLimits(redis_url)
    assert [await passes(limits) for limits in (first, second, first, second, first)] == [True] * 3 + [False] * 2
    await first.close()
    await second.close()


async def test_accounts_are_counted_apart(redis_url: str) -> None:
    limits = ProviderLimits(redis_url)
    other = ENDPOINT.model_copy(update={"key_variable": "OTHER_API_KEY"})
    assert [await passes(limits) for _ in range(4)] == [True, True, True, False]
    assert await passes(limits, other)
    await limits.close()


@pytest.mark.parametrize("away", ["redis://127.0.0.1:1/0", None])
async def test_without_redis_the_process_counts_for_itself(away: str | None) -> None:
    limits = ProviderLimits(away)
    assert [await passes(limits) for _ in range(4)] == [True, True, True, False]
    await limits.close()


async def test_a_crowd_never_passes_the_limit(redis_url: str) -> None:
    limits = ProviderLimits(redis_url)
    assert sum(await asyncio.gather(*(passes(limits) for _ in range(50)))) == 3
    await limits.close()
