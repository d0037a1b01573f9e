"""From the answer to a question to the next node, beside what a message takes in Celery's own queue.

The company's figure begins when the answer is recorded and ends in the first line of the next node; between them lie a
commit, Celery's queue, the claim of the run and its checkpoint. What the client waits for besides is told too. Celery's
begins at `send_task` and ends in the first line of the task, in the same kind of worker.
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
from redis.asyncio import Redis

from benchmarks.peers import celery_app
from benchmarks.rig import place, told
from benchmarks.rig.place import Servers, environment_of_peer, process
from benchmarks.rig.wire import Lines
from benchmarks.rig.work import load

HERE = Path(__file__).parent / "peers"
TOLD = "SELECT extract(epoch FROM min(occurred_at))::float8 FROM events WHERE run_id = $1 AND type = $2"
BEGAN = "SELECT body::float8 FROM task_comments WHERE run_id = $1 AND node = 'node_3'"


async def one_answer(database: Any, lines: Lines) -> tuple[float, float, float]:
    """Milliseconds from sending the answer, from its record, and from the claim, to the next node."""
    settings: dict[str, Any] = {"graph": "asking", "sandbox": {"level": "unsafe"}, "people": {"may_ask": True}}
    settings["models"] = {"default": "scripted", "prices": {"scripted": {"input": 1, "output": 2}}}
    project = await database.fetchval(
        "INSERT INTO projects (name, brief, status, template_slug, template_version, config_patch)"
        " VALUES ('bench', 'question', 'READY', 'local', 1, $1::jsonb) RETURNING id",
        json.dumps(settings),
    )
    run = (await lines.ask("POST", f"/api/projects/{project}/runs", {})).json()["id"]
    waiting = (
        "SELECT q.id FROM questions q JOIN project_runs r ON r.id = q.run_id WHERE r.id = $1 AND r.status = 'WAITING'"
    )
    while (question := await database.fetchval(waiting, run)) is None:
        await asyncio.sleep(0.02)
    sent = time.time()
    await lines.ask("POST", f"/api/questions/{question}/answer", {"answer": "blue"})
    while (began := await database.fetchval(BEGAN, run)) is None:
        await asyncio.sleep(0.01)
    answered, taken = [await database.fetchval(TOLD, run, kind) for kind in ("question.answered", "run.resumed")]
    return (began - sent) * 1000, (began - answered) * 1000, (began - taken) * 1000


async def company_side(up: place.Company, count: int) -> list[tuple[float, float, float]]:
    database, lines = await asyncpg.connect(up.database_url), Lines(up.port, 2)
    found = [await one_answer(database, lines) for _ in range(count + 2)]
    lines.close()
    await database.close()
    return found[2:]


async def celery_side(servers: Servers, count: int) -> list[float]:
    celery_app.app.conf.broker_url = servers.redis_url
    redis: Redis = Redis.from_url(servers.redis_url)
    found = []
    for _ in range(count + 2):
        await redis.delete(celery_app.STARTED)
        sent = time.time()
        await asyncio.to_thread(celery_app.app.send_task, "started", queue="bench.chain")
        _, at = await redis.blpop(celery_app.STARTED)  # type: ignore[misc]  # redis ships odd types
        found.append((float(at) - sent) * 1000)
    await redis.aclose()
    return found[2:]


def main() -> None:
    options = place.parser(__doc__, rounds=3)
    options.add_argument("--answers", type=int, default=10, help="each round")
    asked = options.parse_args()
    ours: list[tuple[float, float, float]] = []
    theirs: list[float] = []
    with place.servers() as servers, servers.database() as url, place.company(servers, url) as company:
        environment = environment_of_peer(PEER_REDIS_URL=servers.redis_url, PYTHONPATH=str(HERE))
        argv = [sys.executable, "-m", "celery", "-A", "celery_app", "worker", "-P", "threads", "-c", "16"]
        argv += ["-Q", "bench.chain", "-l", "WARNING", "--without-gossip", "--without-mingle"]
        with process("celery", argv, environment, servers.logs, cwd=HERE):
            for _ in range(asked.rounds):
                ours += asyncio.run(company_side(company, asked.answers))
                theirs += asyncio.run(celery_side(servers, asked.answers))
    middle = statistics.median
    sent, answered, taken = (middle(times) for times in zip(*ours, strict=True))
    queue = middle(theirs)
    told.tell(
        "From an answer to the next node",
        told.table(
            ("", "ms median"),
            [
                ("answer recorded to next node begun", answered),
                ("  of it from the claim of the run on", taken),
                ("answer sent to next node begun", sent),
                ("Celery: message sent to first line of the task", queue),
            ],
            first=48,
        ),
        [
            told.Ratio("answer recorded to next node / Celery's queue", answered / queue, "<= 2"),
            told.Ratio("answer sent to next node / Celery's queue", sent / queue),
        ],
        load(),
    )


if __name__ == "__main__":
    main()
