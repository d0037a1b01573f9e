"""The client of all model calls: its lanes, shared by the calls of hundreds of runs and left however a call ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pytest

from backend.adapters.llm.wire import BoundedClient, Capture, TooLarge, capturing
from tests.openai_server import OpenAIServer, Reply, cut, disconnect, endless, error, silent, text
from tests.patience import PATIENCE

BODY = {"model": "scripted", "messages": [{"role": "user", "content": "go on"}]}


@pytest.fixture
async def client() -> AsyncIterator[BoundedClient]:
    made = BoundedClient()
    yield made
    await made.aclose()


async def call(client: BoundedClient, server: OpenAIServer, capture: Capture, **options: Any) -> None:
    token = capturing.set(capture)
    try:
        await client.post(f"{server.base_url}/chat/completions", json=BODY, **options)
    finally:
        capturing.reset(token)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


async def test_calls_at_once_share_lanes_and_the_lanes_go_when_the_calls_are_done(client: BoundedClient) -> None:
    with OpenAIServer(lambda _: text("done").after(2)) as server:
        captures = [Capture() for _ in range(40)]
        calls = [asyncio.create_task(call(client, server, capture)) for capture in captures]
        await until(lambda: len(server.requests) == 40)
        assert client.lanes == (16, 16, 8)
        await asyncio.gather(*calls)
    assert {(capture.status, capture.complete) for capture in captures} == {(200, True)}
    assert client.lanes == (0,)


async def test_one_call_after_the_other_needs_one_lane(client: BoundedClient) -> None:
    with OpenAIServer(lambda _: text("done")) as server:
        for _ in range(20):
            await call(client, server, Capture())
    assert client.lanes == (0,)


@pytest.mark.parametrize(
    ("reply", "raised"),
    [
        (cut(), httpx2.RemoteProtocolError),
        (disconnect(), httpx2.RemoteProtocolError),
        (silent(), httpx2.ReadTimeout),
        (endless(), TooLarge),
        (error(500), None),
    ],
    ids=["cut", "disconnected", "silent", "too large", "refused"],
)
async def test_a_call_that_fails_leaves_its_lane(
    client: BoundedClient, reply: Reply, raised: type[Exception] | None
) -> None:
    with OpenAIServer(lambda _: reply) as server, pytest.raises(raised) if raised else contextlib.nullcontext():
        await call(client, server, Capture(limit=10_000), timeout=httpx2.Timeout(10, read=0.5))
    assert client.lanes == (0,)


async def test_calls_that_are_cancelled_leave_their_lanes(client: BoundedClient) -> None:
    with OpenAIServer(lambda _: silent()) as server:
        calls = [asyncio.create_task(call(client, server, Capture())) for _ in range(20)]
        await until(lambda: len(server.requests) == 20)
        for one in calls:
            one.cancel()
        ends = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(end) for end in ends} == {asyncio.CancelledError}
    assert client.lanes == (0,)


async def test_a_stream_that_is_left_in_the_middle_leaves_its_lane(client: BoundedClient) -> None:
    token = capturing.set(Capture())
    with OpenAIServer(lambda _: endless()) as server:
        async with client.stream("POST", f"{server.base_url}/chat/completions", json=BODY) as response:
            assert client.lanes == (1,)
            async for _ in response.aiter_bytes():
                break
    capturing.reset(token)
    assert client.lanes == (0,)
