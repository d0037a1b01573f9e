"""Runs that wait for models: 200 runs of seven calls that take two seconds, in one worker process.

Beside it a Celery prefork child for each run, whose tasks sleep instead of asking: no database, no api, no journal.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import asyncpg

from benchmarks.peers import celery_app
from benchmarks.peers.work import NODES
from benchmarks.rig import place, told
from benchmarks.rig.place import Servers, environment_of_peer, memory_mb, process
from benchmarks.rig.wire import Lines
from benchmarks.rig.work import load, processor_seconds
from tests.openai_server import OpenAIServer, text

WAIT = 2.0
HERE = Path(__file__).parent / "peers"


def tree_mb(root: int) -> float:
    """Memory of a process and its children, shared pages divided among those that share them."""
    pids, total = [root], 0.0
    while pids:
        pid = pids.pop()
        try:
            pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in rollup if line.startswith("Pss:")) / 1024
    return total


async def company_runs(servers: Servers, up: place.Company, base_url: str, count: int) -> dict[str, float]:
    database = await asyncpg.connect(up.database_url)
    settings = {
        "graph": "asking",
        "sandbox": {"level": "unsafe"},
        "models": {
            "provider": "loopback",
            "default": "scripted",
            "prices": {"scripted": {"input": 1, "output": 2}},
            "providers": {"loopback": {"base_url": base_url}},
        },
    }
    lines, done = Lines(up.port, 32), 0
    worker = up.workers[0].process.pid
    for number in (10, count):
        projects = await database.fetch(
            "INSERT INTO projects (name, brief, status, template_slug, template_version, config_patch)"
            " SELECT 'bench', 'go', 'READY', 'local', 1, $2::jsonb FROM generate_series(1, $1) RETURNING id",
            number,
            json.dumps(settings),
        )
        began, used = time.perf_counter(), processor_seconds([worker])
        await asyncio.gather(*(lines.ask("POST", f"/api/projects/{row['id']}/runs", {}) for row in projects))
        done += number
        while await database.fetchval("SELECT count(*) FROM project_runs WHERE status = 'COMPLETED'") < done:
            await asyncio.sleep(0.1)
            odd = await database.fetch("SELECT status, error FROM project_runs WHERE status LIKE 'FAIL%' LIMIT 2")
            if odd:
                raise RuntimeError(f"Runs failed: {odd}")
        seconds = time.perf_counter() - began
        spent = processor_seconds([worker]) - used
    times = await database.fetch("SELECT extract(epoch FROM ended_at - started_at)::float8 AS s FROM project_runs")
    calls = await database.fetchval("SELECT count(*) FROM model_calls WHERE status = 'done'")
    lines.close()
    await database.close()
    return {
        "seconds": seconds,
        "mb": memory_mb(worker, "VmHWM"),
        "processor": spent * 1000 / count,
        "median": statistics.median(row["s"] for row in times),
        "calls": calls,
    }


def chain_runs(servers: Servers, children: int) -> dict[str, float]:
    """A chain of seven sleeping tasks for each child."""
    from celery import chain
    from redis import Redis

    environment = environment_of_peer(PEER_REDIS_URL=servers.redis_url, PYTHONPATH=str(HERE))
    argv = [sys.executable, "-m", "celery", "-A", "celery_app", "worker", "-c", str(children), "-Q", "bench.chain"]
    argv += ["-l", "WARNING", "--without-gossip", "--without-mingle", "-O", "fair"]
    celery_app.app.conf.broker_url = servers.redis_url
    redis = Redis.from_url(servers.redis_url)
    with process("celery", argv, environment, servers.logs, cwd=HERE) as worker:
        for runs in (2, children):
            redis.delete(celery_app.DONE)
            began = time.perf_counter()
            for run in range(runs):
                first, *rest = range(1, NODES + 1)
                asks = celery_app.asks
                chain(asks.s({}, first, run), *(asks.s(n, run) for n in rest)).apply_async()
            while int(redis.get(celery_app.DONE) or 0) < runs:
                time.sleep(0.1)
            seconds = time.perf_counter() - began
        return {"seconds": seconds, "mb": tree_mb(worker.process.pid)}


def main() -> None:
    options = place.parser(__doc__, rounds=1)
    options.add_argument("--runs", type=int, default=200)
    asked = options.parse_args()
    ideal = NODES * WAIT
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    with place.servers() as servers, OpenAIServer(lambda _: text("go on").billed(100, 20).after(WAIT)) as models:
        for _ in range(asked.rounds):
            with (
                servers.database() as url,
                place.company(servers, url, concurrency=asked.runs + 50, pool_size=10) as company,
            ):
                ours.append(asyncio.run(company_runs(servers, company, models.base_url, asked.runs)))
            theirs.append(chain_runs(servers, asked.runs))

    def middle(found: list[dict[str, Any]], name: str) -> float:
        return float(statistics.median(one[name] for one in found))

    told.tell(
        f"{asked.runs} runs of {NODES} model calls of {WAIT:g} s at once",
        told.table(
            ("", "seconds", "MB"),
            [
                ("ideal", ideal, ""),
                ("the company, one worker process", middle(ours, "seconds"), middle(ours, "mb")),
                (f"Celery, {asked.runs} prefork children", middle(theirs, "seconds"), middle(theirs, "mb")),
            ],
        ),
        [
            told.Ratio("time / ideal", middle(ours, "seconds") / ideal, "<= 1.25"),
            told.Ratio("MB of the worker process, at most", middle(ours, "mb"), "<= 400"),
            told.Ratio("MB / Celery's children", middle(ours, "mb") / middle(theirs, "mb")),
        ],
        f"A run took {middle(ours, 'median'):.1f} s from claim to end (median); {middle(ours, 'processor'):.0f} ms of "
        f"the worker's processor a run; {middle(ours, 'calls'):.0f} calls in the journal, each with its reservation.",
        load(),
    )


if __name__ == "__main__":
    main()
