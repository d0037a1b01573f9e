"""Requests a minute are counted over processes by Redis, and in the process while Redis is away."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from backend.adapters.llm.limits import ProviderLimits
from backend.domain.config import ProviderConfig

ENDPOINT = ProviderConfig(base_url="http://127.0.0.1:9/v1", requests_per_minute=3)


async def passes(
    limits: ProviderLimits, endpoint: ProviderConfig = ENDPOINT, tokens: int = 0, patience: float = 0.2
) -> bool:
    try:
        await asyncio.wait_for(limits.wait(endpoint, tokens), patience)
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


@pytest.mark.parametrize("shared", [True, False], ids=["in Redis", "in the process"])
@pytest.mark.parametrize(("most", "sizes", "passing"), [
    (1_000, [400, 400, 201, 200, 1], [True, True, False, True, False]),
    (2_000_000, [999_999, 1_000_000, 4_000, 1], [True, True, False, False]),
    (1_000, [5_000, 1], [True, False]),
], ids=["small", "large", "larger than a minute"])  # fmt: skip
async def test_tokens_a_minute_are_never_passed(
    redis_url: str, shared: bool, most: int, sizes: list[int], passing: list[bool]
) -> None:
    endpoint = ProviderConfig(base_url=f"http://127.0.0.1:9/{uuid4()}", tokens_per_minute=most)
    first = ProviderLimits(redis_url if shared else None)
    limits = [first, ProviderLimits(redis_url) if shared else first]
    passed = [await passes(limits[number % 2], endpoint, size) for number, size in enumerate(sizes)]
    assert passed == passing
    for one in set(limits):
        await one.close()


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
    # Fifty connections take a while on a machine that is busy.
    assert sum(await asyncio.gather(*(passes(limits, patience=2) for _ in range(50)))) == 3
    await limits.close()
