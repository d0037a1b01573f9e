"""An event to 200 live followers: from the committed row to each client, beside one bare Redis pub/sub hub.

The company reads the row after the wake-up, keeps its order and loses nothing; the hub hands on what was published.
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from uuid import UUID

import asyncpg
from redis.asyncio import Redis

from backend.adapters.bus import Waker
from backend.engine.embedded.database import free_port
from benchmarks.rig import place, told
from benchmarks.rig.place import ROOT, environment_of_peer, process, wait_for
from benchmarks.rig.work import load

NUMBER = re.compile(rb'"bench": ?(\d+)')
EVERY = 0.1
WARM = 3
"""Events that are not counted: with the first follower of a process its subscription is made."""


async def follow(port: int, path: str, seen: dict[int, list[float]], ready: asyncio.Semaphore) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
    await reader.readuntil(b"retry: 2000")
    ready.release()
    try:
        while line := await reader.readline():
            if found := NUMBER.search(line):
                seen.setdefault(int(found[1]), []).append(time.perf_counter())
    finally:
        writer.close()


Publish = Callable[[int], Awaitable[float]]
"""Publishes an event of this number; returns when it was there to be read."""


async def delays(port: int, path: str, followers: int, events: int, publish: Publish) -> tuple[list[float], int]:
    """Milliseconds of every delivery, and how many are missing."""
    seen: dict[int, list[float]] = {}
    ready = asyncio.Semaphore(0)
    tasks = [asyncio.create_task(follow(port, path, seen, ready)) for _ in range(followers)]
    for _ in tasks:
        try:
            await asyncio.wait_for(ready.acquire(), 60)
        except TimeoutError:
            failed = next((task.exception() for task in tasks if task.done()), None)
            raise RuntimeError(f"Not all followers were let in: {failed!r}") from None
    await asyncio.sleep(0.5)
    began = {}
    for number in range(WARM + events):
        began[number] = await publish(number)
        await asyncio.sleep(EVERY)
    until = time.perf_counter() + 10
    while time.perf_counter() < until and sum(map(len, seen.values())) < followers * (WARM + events):
        await asyncio.sleep(0.1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    found = [(at - began[number]) * 1000 for number, ats in seen.items() for at in ats if number >= WARM]
    return found, followers * (WARM + events) - sum(map(len, seen.values()))


async def a_run(database: Any) -> UUID:
    """A run that is on its way, with no worker to disturb."""
    run: UUID = await database.fetchval(
        "WITH p AS (INSERT INTO projects (name, brief, status, template_slug, template_version)"
        " VALUES ('bench', 'brief', 'RUNNING', 'lean', 1) RETURNING id)"
        " INSERT INTO project_runs (project_id, number, status, graph, graph_version, template_slug, template_version,"
        " brief, config_snapshot, lease_owner, lease_epoch, lease_expires_at) SELECT id, 1, 'RUNNING', 'steps', '1',"
        " 'lean', 1, 'brief', '{}', 'bench', 1, now() + interval '1 day' FROM p RETURNING id"
    )
    return run


async def bench(
    company: place.Company, redis_url: str, hub: int, rounds: int, followers: int, events: int
) -> dict[str, Any]:
    database, waker = await asyncpg.connect(company.database_url), Waker(redis_url)
    redis: Redis = Redis.from_url(redis_url)

    async def insert(run: UUID, number: int) -> float:
        async with database.transaction():
            await database.execute(
                "WITH r AS (UPDATE project_runs SET event_seq = event_seq + 1 WHERE id = $1 RETURNING *)"
                " INSERT INTO events (project_id, run_id, seq, type, source, payload)"
                " SELECT project_id, id, event_seq, 'model.called', 'engine', $2 FROM r",
                run,
                json.dumps({"bench": number}),
            )
        at = time.perf_counter()
        waker.wake(run)
        return at

    async def publish(number: int) -> float:
        at = time.perf_counter()
        await redis.publish("bench:hub", json.dumps({"bench": number, "padding": "x" * 400}))
        return at

    found: dict[str, Any] = {"the company": ([], 0), "one Redis hub": ([], 0)}
    for _ in range(rounds):
        run = await a_run(database)
        sides: list[tuple[str, int, str, Publish]] = [
            ("the company", company.port, f"/api/runs/{run}/events", partial(insert, run)),
            ("one Redis hub", hub, "/events", publish),
        ]
        for name, port, path, way in sides:
            took, missing = await delays(port, path, followers, events, way)
            found[name] = (found[name][0] + took, found[name][1] + missing)
    await database.close()
    await waker.close()
    await redis.aclose()
    return found


def main() -> None:
    options = place.parser(__doc__, rounds=3)
    options.add_argument("--followers", type=int, default=200)
    options.add_argument("--events", type=int, default=30, help="each round")
    asked = options.parse_args()
    with place.servers() as servers, servers.database() as url, place.company(servers, url, workers=0) as company:
        port = free_port()
        environment = environment_of_peer(REDIS_URL=servers.redis_url, PEER_PORT=str(port), PYTHONPATH=str(ROOT))
        with process("hub", [sys.executable, "-m", "benchmarks.peers.hub"], environment, servers.logs) as hub:
            wait_for(port, "/healthz", hub)
            found = asyncio.run(bench(company, servers.redis_url, port, asked.rounds, asked.followers, asked.events))
    lines, high = [], {}
    for name, (took, missing) in found.items():
        high[name] = statistics.quantiles(took, n=100)[98]
        lines.append((name, statistics.median(took), high[name], missing))
    ratios = [told.Ratio("99th percentile / one Redis hub", high["the company"] / high["one Redis hub"], "<= 1.5")]
    ratios.append(told.Ratio("events that did not arrive", float(found["the company"][1]), "<= 0"))
    told.tell(
        f"An event to {asked.followers} followers",
        told.table(("", "ms median", "ms 99th", "missing"), lines),
        ratios,
        load(),
    )


if __name__ == "__main__":
    main()
