"""Requests a minute are counted over processes by Redis, and in the process while Redis is away."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any
from uuid import uuid4

import pytest

from backend.adapters.llm.limits import ProviderLimits
from backend.domain.config import ProviderConfig
from tests.patience import PATIENCE

ENDPOINT = ProviderConfig(base_url="http://127.0.0.1:9/v1", requests_per_minute=3)


async def through(*waiting: Coroutine[Any, Any, None], expected: int) -> int:
    """How many get through at once: those who are expected have all the time they need, the others a moment longer."""
    tasks = [asyncio.ensure_future(one) for one in waiting]
    async with asyncio.timeout(PATIENCE):
        while sum(task.done() for task in tasks) < expected:
            await asyncio.wait([task for task in tasks if not task.done()], return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(0.2)
    passed = [task for task in tasks if task.done() and task.exception() is None]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return len(passed)


async def passes(limits: ProviderLimits, endpoint: ProviderConfig, tokens: int, *, patience: float) -> bool:
    try:
        await asyncio.wait_for(limits.wait(endpoint, tokens), patience)
    except TimeoutError:
        return False
    return True


async def test_without_a_limit_nobody_waits() -> None:
    limits = ProviderLimits(None)
    free = ProviderConfig(base_url="http://x")
    assert await through(*(limits.wait(free) for _ in range(100)), expected=100) == 100


async def test_processes_count_together_in_redis(redis_url: str) -> None:
    first, second = ProviderLimits(redis_url), ProviderLimits(redis_url)
    waiting = [limits.wait(ENDPOINT) for limits in (first, second, first, second, first)]
    assert await through(*waiting, expected=3) == 3
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
    for number, (size, passes_now) in enumerate(zip(sizes, passing, strict=True)):
        # Who is expected has all the time that a busy machine needs.
        assert await passes(limits[number % 2], endpoint, size, patience=30 if passes_now else 0.2) is passes_now
    for one in set(limits):
        await one.close()


async def test_accounts_are_counted_apart(redis_url: str) -> None:
    limits = ProviderLimits(redis_url)
    other = ENDPOINT.model_copy(update={"key_variable": "OTHER_API_KEY"})
    assert await through(*(limits.wait(ENDPOINT) for _ in range(4)), expected=3) == 3
    assert await through(limits.wait(other), expected=1) == 1
    await limits.close()


@pytest.mark.parametrize("away", ["redis://127.0.0.1:1/0", None])
async def test_without_redis_the_process_counts_for_itself(away: str | None) -> None:
    limits = ProviderLimits(away)
    assert await through(*(limits.wait(ENDPOINT) for _ in range(4)), expected=3) == 3
    await limits.close()


async def test_a_crowd_never_passes_the_limit(redis_url: str) -> None:
    limits = ProviderLimits(redis_url)
    assert await through(*(limits.wait(ENDPOINT) for _ in range(50)), expected=3) == 3
    await limits.close()
