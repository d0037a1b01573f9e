"""The stream of everything that a tenant's runs and projects do: one order, nothing missed, nothing repeated."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import AsyncIterator
from contextlib import aclosing
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest
import websockets
from fastapi import FastAPI

from backend.adapters.db.engine import Sessions
from backend.adapters.db.tables import Project, ProjectRun, Tenant
from backend.api import streams
from backend.api.event_logs import Entry, Place
from backend.api.streams import Streams
from backend.domain.ids import DEFAULT_TENANT
from tests.integration.api.conftest import Post, Quiet
from tests.integration.api.test_events import address, tell
from tests.patience import PATIENCE

__all__ = ["address"]

WRITE = """INSERT INTO events (tenant_id, project_id, type, source, payload)
VALUES ($1, $2, 'project.changed', 'test', jsonb_build_object('number', $3::int))"""


@pytest.fixture
def feeds(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> Streams:
    monkeypatch.setattr(streams, "POLL_SECONDS", 0.1)
    found: Streams = app.state.streams
    return found


def number_of(entry: Entry[Place]) -> int | None:
    number: int | None = json.loads(entry.data)["payload"].get("number")
    return number


async def numbers(entries: AsyncIterator[Entry[Place] | None], last: int) -> list[int | None]:
    found = []
    async for entry in entries:
        if entry is not None:
            found.append(number_of(entry))
            if found[-1] == last:
                break
    return found


async def test_writers_that_commit_out_of_order_are_read_whole_and_in_order(
    feeds: Streams, client: httpx.AsyncClient, new_project: Post, database_url: str, bell: Quiet
) -> None:
    project = UUID((await new_project())["id"])
    last = 8 * 25 + 1

    async def write(writer: int) -> None:
        chance = random.Random(writer)
        connection = await asyncpg.connect(database_url)
        for number in range(25):
            async with connection.transaction():
                await connection.execute(WRITE, DEFAULT_TENANT, project, writer * 25 + number)
                await asyncio.sleep(chance.choice((0, 0, 0.002, 0.05)))
            bell.wake(project)
        await connection.close()

    async def read(seed: int) -> list[Entry[Place]]:
        chance, got = random.Random(seed), list[Entry[Place]]()
        while not got or number_of(got[-1]) != last:
            stay = chance.randint(1, 40)
            async with aclosing(feeds.follow_tenant(DEFAULT_TENANT, got[-1].place if got else None)) as entries:  # type: ignore[type-var]  # it is a generator
                while stay > 0 and (not got or number_of(got[-1]) != last):
                    entry = await anext(entries)
                    got += [entry] if entry is not None else []
                    stay -= 1
        return got

    async def write_all() -> None:
        await asyncio.gather(*(write(writer) for writer in range(8)))
        connection = await asyncpg.connect(database_url)
        await connection.execute(WRITE, DEFAULT_TENANT, project, last)
        await connection.close()

    everything, _ = await asyncio.gather(asyncio.gather(*(read(seed) for seed in range(10))), write_all())
    written = [*range(8 * 25), last]
    for got in everything:
        told = [number_of(entry) for entry in got]
        assert sorted(number for number in told if number is not None) == written
        assert len({entry.place for entry in got}) == len(got) == len(written) + 1
        assert [entry.place for entry in got] == sorted(entry.place for entry in got)
    assert feeds._feeds == {}


async def test_an_event_waits_for_the_older_one_that_is_not_committed_yet(
    feeds: Streams, new_project: Post, database_url: str
) -> None:
    project = UUID((await new_project())["id"])
    slow, quick = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
    held = slow.transaction()
    await held.start()
    await slow.execute(WRITE, DEFAULT_TENANT, project, 1)
    await quick.execute(WRITE, DEFAULT_TENANT, project, 2)
    async with aclosing(feeds.follow_tenant(DEFAULT_TENANT, None)) as entries:  # type: ignore[type-var]  # it is a generator
        first = await anext(entries)
        assert first is not None
        assert first.type == "project.created"
        reading = asyncio.create_task(numbers(entries, 2))
        await asyncio.sleep(0.5)
        assert not reading.done()
        await held.commit()
        assert await reading == [1, 2]
    await slow.close()
    await quick.close()


async def test_the_stream_goes_on_after_the_last_id_and_can_begin_now(
    address: str, new_run: Post, sessions: Sessions, bell: Quiet
) -> None:
    run_id = (await new_run())["id"]
    await tell(sessions, bell, run_id, 5)
    url, opened = f"http://{address}/api/events", asyncio.Event()

    async def ids(count: int, **options: dict[str, str]) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        async with httpx.AsyncClient(timeout=PATIENCE) as client, client.stream("GET", url, **options) as answer:  # type: ignore[arg-type]  # options of a request
            assert answer.status_code == 200, answer
            opened.set()
            name = ""
            async for line in answer.aiter_lines():
                if line.startswith("id: "):
                    name = line[4:]
                elif line.startswith("data: "):
                    found.append((name, json.loads(line[6:])["type"]))
                    if len(found) == count:
                        break
        return found

    every = await ids(7)
    assert [kind for _, kind in every] == ["project.created", "run.created", *["model.called"] * 5]
    assert await ids(4, headers={"Last-Event-ID": every[2][0]}) == every[3:]
    assert await ids(4, params={"after": every[2][0]}) == every[3:]
    opened.clear()
    live = asyncio.create_task(ids(1, params={"after": "now"}))
    await asyncio.wait_for(opened.wait(), PATIENCE)
    await tell(sessions, bell, run_id, 0, end=True)
    assert [kind for _, kind in await live] == ["run.completed"]


FAR = base64.urlsafe_b64encode(b"0001-01-01T00:00:00+14:00 00000000-0000-7000-8000-000000000009").decode()


@pytest.mark.parametrize("place", ["", "x", "bm93", "=", "\u00e9", FAR])
async def test_a_place_that_no_stream_gave_is_refused(client: httpx.AsyncClient, place: str) -> None:
    answer = await client.get("/api/events", params={"after": place})
    assert (answer.status_code, "unchanged" in answer.text) == (422, True), answer.text


async def test_what_belongs_to_another_tenant_is_not_streamed(
    address: str, feeds: Streams, client: httpx.AsyncClient, new_run: Post, sessions: Sessions, bell: Quiet
) -> None:
    run = await new_run()
    other = uuid4()
    async with sessions.begin() as session:
        session.add(Tenant(id=other, name="Other"))
        await session.flush()
        project = Project(
            tenant_id=other,
            name="Theirs",
            brief="Secret.",
            template_slug="standard",
            template_version=1,
            status="READY",
        )
        session.add(project)
        await session.flush()
        theirs = ProjectRun(
            tenant_id=other, project_id=project.id, number=1, graph="chain", graph_version="1", brief="Secret.",
            template_slug="standard", template_version=1, config_snapshot={},
        )  # fmt: skip
        session.add(theirs)
    connection = await asyncpg.connect(sessions.kw["bind"].url.set(drivername="postgresql").render_as_string(False))
    await connection.execute(WRITE, other, project.id, 7)
    await connection.close()
    assert (await client.get(f"/api/runs/{theirs.id}/events")).status_code == 404
    with pytest.raises(websockets.ConnectionClosed) as closed:
        async with websockets.connect(f"ws://{address}/api/runs/{theirs.id}/events/ws") as socket:
            await socket.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4404
    await tell(sessions, bell, run["id"], 0, end=True)
    async with aclosing(feeds.follow_tenant(DEFAULT_TENANT, None)) as entries:  # type: ignore[type-var]  # it is a generator
        kinds = []
        async for entry in entries:
            assert entry is not None
            kinds.append(entry.type)
            if entry.type == "run.completed":
                break
    assert kinds == ["project.created", "run.created", "run.completed"]
    async with aclosing(feeds.follow_tenant(other, None)) as entries:  # type: ignore[type-var]  # it is a generator
        assert await numbers(entries, 7) == [7]
