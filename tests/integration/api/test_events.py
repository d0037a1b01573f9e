"""Streams of events: nothing missed, nothing repeated, in order, from any place in the life of a run."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import httpx
import pytest
import uvicorn
import websockets
from fastapi import FastAPI

from backend.adapters.db.engine import Sessions, transaction
from backend.adapters.db.tables import ProjectRun
from backend.api import streams
from backend.api.streams import Streams
from backend.domain.event import EVENT_TYPES
from backend.operations import events, runs
from tests.integration.api.conftest import Post, Quiet
from tests.patience import PATIENCE


@pytest.fixture
async def address(app: FastAPI) -> AsyncIterator[str]:
    """The same application behind a real socket, since streams are about sockets."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="on", timeout_graceful_shutdown=1))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await serving


async def tell(sessions: Sessions, bell: Quiet, run_id: str, count: int = 1, *, end: bool = False) -> None:
    for _ in range(count):
        async with transaction(sessions, bell) as session:
            run = await runs.get(session, UUID(run_id), lock=True)
            events.record(session, run, "model.called", {"text": "line\nbreak"})
    if end:
        await set_status(sessions, run_id, "RUNNING")
        async with transaction(sessions, bell) as session:
            run = await runs.get(session, UUID(run_id), lock=True)
            run.status = "COMPLETED"
            events.record(session, run, "run.completed")


async def set_status(sessions: Sessions, run_id: str, status: str) -> None:
    async with sessions.begin() as session:
        (await session.get_one(ProjectRun, UUID(run_id))).status = status


@asynccontextmanager
async def following(address: str, run_id: str, **options: Any) -> AsyncIterator[AsyncIterator[str]]:
    async with (
        httpx.AsyncClient(timeout=PATIENCE) as client,
        client.stream("GET", f"http://{address}/api/runs/{run_id}/events", **options) as answer,
    ):
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield answer.aiter_lines()


async def seqs(lines: AsyncIterator[str], most: int | None = None) -> list[int]:
    found = []
    async for line in lines:
        if line.startswith("id: "):
            found.append(int(line[4:]))
            if len(found) == most:
                break
    return found


async def test_words_come_between_the_events_without_a_number_and_only_for_who_asks(
    address: str, new_run: Post, sessions: Sessions, bell: Quiet
) -> None:
    run_id = (await new_run())["id"]
    async with following(address, run_id, params={"tokens": "true"}) as lines:
        assert await seqs(lines, 1) == [1]
        for number in range(3):
            bell.said.put_nowait(json.dumps({"type": "tokens", "text": f"word {number}"}).encode())
        spoken = []
        while len(spoken) < 3:
            line = await anext(lines)
            assert not line.startswith("id:")
            if line.startswith("data: ") and "tokens" in line:
                spoken.append(json.loads(line[6:])["text"])
        assert spoken == ["word 0", "word 1", "word 2"]
        await tell(sessions, bell, run_id, 2, end=True)
        assert await seqs(lines) == [2, 3, 4], "the stream ends with the run, whatever is still said"
    bell.said.put_nowait(b'{"type": "tokens", "text": "late"}')
    async with following(address, run_id, headers={"Last-Event-ID": "2"}) as lines:
        assert "late" not in "".join([line async for line in lines])


async def test_a_stream_begins_after_what_was_seen_and_ends_with_the_run(
    address: str, new_run: Post, sessions: Sessions, bell: Quiet
) -> None:
    run_id = (await new_run())["id"]
    await tell(sessions, bell, run_id, 5)
    async with following(address, run_id, headers={"Last-Event-ID": "2"}) as lines:
        assert await seqs(lines, 4) == [3, 4, 5, 6]
        telling = asyncio.create_task(tell(sessions, bell, run_id, 3, end=True))
        assert await seqs(lines) == [7, 8, 9, 10]
        await telling


async def test_a_finished_run_is_streamed_from_any_place_and_then_no_more(
    address: str, client: httpx.AsyncClient, new_run: Post, sessions: Sessions, bell: Quiet
) -> None:
    run_id = (await new_run())["id"]
    await tell(sessions, bell, run_id, 700, end=True)
    async with following(address, run_id) as lines:
        assert await seqs(lines) == list(range(1, 703))
    async with following(address, run_id, params={"after": 690}) as lines:
        assert await seqs(lines) == list(range(691, 703))
    for header in ("702", "9999"):
        answer = await client.get(f"/api/runs/{run_id}/events", headers={"Last-Event-ID": header})
        assert answer.status_code == 204


@pytest.mark.parametrize("header", ["-1", "x", "1.5", "9" * 30])
async def test_a_place_that_is_none_is_refused(client: httpx.AsyncClient, new_run: Post, header: str) -> None:
    run_id = (await new_run())["id"]
    answer = await client.get(f"/api/runs/{run_id}/events", headers={"Last-Event-ID": header})
    assert answer.status_code == 422


async def test_lost_wake_ups_cost_a_delay_and_nothing_else(
    address: str, new_run: Post, sessions: Sessions, bell: Quiet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "POLL_SECONDS", 0.05)
    run_id = (await new_run())["id"]
    async with following(address, run_id) as lines:
        assert await seqs(lines, 1) == [1]
        deaf = Quiet()
        await tell(sessions, deaf, run_id, 2, end=True)
        assert await seqs(lines) == [2, 3, 4]


async def test_comments_keep_a_silent_line_open(address: str, new_run: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "COMMENT_SECONDS", 0.05)
    async with following(address, (await new_run())["id"]) as lines:
        async for line in lines:
            if line.startswith(":"):
                break
        assert line.startswith(":")


async def test_a_stream_ends_when_its_project_is_deleted(
    address: str, client: httpx.AsyncClient, new_run: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "POLL_SECONDS", 0.05)
    run = await new_run()
    async with following(address, run["id"]) as lines:
        assert await seqs(lines, 1) == [1]
        await client.post(f"/api/runs/{run['id']}/stop")
        await client.delete(f"/api/projects/{run['project_id']}")
        assert await seqs(lines) in ([], [2])


async def test_who_reads_what_has_been_lets_others_have_their_turns(
    app: FastAPI, sessions: Sessions, bell: Quiet, new_run: Post
) -> None:
    run_id = (await new_run())["id"]
    await tell(sessions, bell, run_id, 63, end=True)
    feeds: Streams = app.state.streams
    turns, counting = 0, True

    async def count() -> None:
        nonlocal turns
        while counting:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(count())
    seen = [turns async for entry in feeds.follow(UUID(run_id), 0) if entry is not None]
    counting = False
    await other
    assert len(seen) == 65
    assert len(set(seen)) >= 65 // streams._SENT_AT_ONCE, "they were sent in one go"


async def test_readers_that_come_and_go_at_random_miss_and_repeat_nothing(
    app: FastAPI, sessions: Sessions, bell: Quiet, new_run: Post
) -> None:
    run_id = (await new_run())["id"]
    feeds: Streams = app.state.streams
    last = 1 + 160 + 1

    async def read(seed: int) -> list[int]:
        chance, got = random.Random(seed), []
        while not got or got[-1] < last:
            stay = chance.randint(1, 40)
            entries = feeds.follow(UUID(run_id), got[-1] if got else 0)
            async for entry in entries:
                if entry is not None:
                    got.append(entry.place)
                    stay -= 1
                if stay == 0:
                    break
            await entries.aclose()  # type: ignore[attr-defined]  # it is a generator
        return got

    async def write() -> None:
        await asyncio.gather(*(tell(sessions, bell, run_id, 20) for _ in range(8)))
        await tell(sessions, bell, run_id, 0, end=True)

    everything, *_ = await asyncio.gather(asyncio.gather(*(read(seed) for seed in range(20))), write())
    assert all(got == list(range(1, last + 1)) for got in everything)
    assert feeds._feeds == {}


async def test_the_same_stream_comes_over_a_web_socket(
    address: str, new_run: Post, sessions: Sessions, bell: Quiet
) -> None:
    run_id = (await new_run())["id"]
    async with websockets.connect(f"ws://{address}/api/runs/{run_id}/events/ws?after=0") as socket:
        assert json.loads(await socket.recv())["type"] == "run.created"
        await tell(sessions, bell, run_id, 1, end=True)
        assert [json.loads(message)["seq"] async for message in socket] == [2, 3]


async def test_every_event_type_has_a_schema(client: httpx.AsyncClient) -> None:
    schemas = (await client.get("/api/events/types")).json()
    assert set(schemas) == set(EVENT_TYPES)
    assert schemas["run.paused"]["properties"]["type"] == {"const": "run.paused"}
