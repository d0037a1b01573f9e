"""A list page of 50 rows out of a million: the company's api beside the usual FastAPI, ORM and response_model.

Both read the same table. The deep page is the one that begins a million rows further back.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from typing import Any

import asyncpg

from backend.engine.embedded.database import free_port
from backend.operations.pages import cursor_of
from benchmarks.rig import place, told
from benchmarks.rig.place import ROOT, environment_of_peer, process, wait_for
from benchmarks.rig.wire import Lines
from benchmarks.rig.work import load, processor_seconds

FILL = (
    "WITH p AS (INSERT INTO projects (name, brief, status, template_slug, template_version)"
    " VALUES ('bench', 'brief', 'COMPLETED', 'lean', 1) RETURNING id)"
    " INSERT INTO project_runs (project_id, number, status, graph, graph_version, template_slug, template_version,"
    " brief, config_snapshot, created_at, queued_at, started_at, ended_at, spent_tokens_input, spent_usd, progress,"
    " final_report) SELECT p.id, n, 'COMPLETED', 'steps', '1', 'lean', 1, 'A brief of a line.',"
    ' \'{"graph": "steps"}\', t, t, t, t, n, n * 0.000001, 100, \'{"done": []}\''
    " FROM p, generate_series(1, $1) n, LATERAL (SELECT now() - make_interval(secs => $1 - n)) g (t)"
)


async def fill(url: str, rows: int) -> tuple[str, int]:
    """Make the rows; the cursor of a page that begins near their end, and how many lie before it."""
    connection = await asyncpg.connect(url, command_timeout=1800)
    await connection.execute(FILL, rows)
    await connection.execute("VACUUM ANALYZE project_runs")
    depth = max(0, rows - 100)
    row = await connection.fetchrow(
        "SELECT created_at, id FROM project_runs ORDER BY created_at DESC, id DESC OFFSET $1 LIMIT 1", depth - 1
    )
    await connection.close()
    return cursor_of(row["created_at"], row["id"]), depth


async def rate(port: int, path: str, seconds: float, connections: int) -> tuple[float, int]:
    """Requests answered in a second by so many connections that ask again at once, and the size of an answer."""
    lines, until, answered, size = Lines(port, connections), time.perf_counter() + seconds, 0, 0

    async def ask() -> None:
        nonlocal answered, size
        while time.perf_counter() < until:
            size = len((await lines.ask("GET", path)).body)
            answered += 1

    began = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(connections)))
    lines.close()
    return answered / (time.perf_counter() - began), size


def main() -> None:
    options = place.parser(__doc__, rounds=5)
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--seconds", type=float, default=2.0, help="of each page, each round")
    options.add_argument("--connections", type=int, default=4)
    asked = options.parse_args()
    with place.servers() as servers, servers.database() as url, place.company(servers, url, workers=0) as company:
        cursor, depth = asyncio.run(fill(url, asked.rows))
        port = free_port()
        environment = environment_of_peer(DATABASE_URL=url, PEER_PORT=str(port), PYTHONPATH=str(ROOT))
        argv = [sys.executable, "-m", "benchmarks.peers.orm_list"]
        with process("orm", argv, environment, servers.logs) as usual:
            wait_for(port, "/healthz", usual)
            pages: dict[str, tuple[int, str, int]] = {
                "the company, first page": (company.port, "/api/runs?limit=50", company.api.process.pid),
                "the company, deep page": (
                    company.port,
                    f"/api/runs?limit=50&cursor={cursor}",
                    company.api.process.pid,
                ),
                "FastAPI + ORM + response_model, first page": (port, "/runs?limit=50", usual.process.pid),
                "the same, deep page by offset": (port, f"/runs?limit=50&skip={depth}", usual.process.pid),
            }
            found = asyncio.run(bench(pages, asked, servers.pids))
    _tell(found, asked.rows)


async def bench(pages: dict[str, tuple[int, str, int]], asked: Any, server: tuple[int, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {name: ([], [], 0) for name in pages}
    for number in range(asked.rounds + 1):
        for name, (port, path, pid) in pages.items():
            used = processor_seconds([pid, *server])
            answered, size = await rate(port, path, asked.seconds if number else 0.5, asked.connections)
            spent = (processor_seconds([pid, *server]) - used) * 1000 / max(1.0, answered * asked.seconds)
            if number:
                found[name] = ([*found[name][0], answered], [*found[name][1], spent], size)
    return found


def _tell(found: dict[str, Any], rows: int) -> None:
    middle = statistics.median
    lines = [(name, middle(rates), middle(spent), size / 1000) for name, (rates, spent, size) in found.items()]
    first, deep, usual, by_offset = (middle(rates) for rates, _, _ in found.values())
    told.tell(
        f"A page of 50 rows out of {rows:,}",
        told.table(("", "requests/s", "processor ms", "kB"), lines),
        [
            told.Ratio("requests/s / FastAPI + ORM + response_model", first / usual, ">= 2.5"),
            told.Ratio("time of the deep page / the first", first / deep, "<= 1.2"),
            told.Ratio("the same by offset", usual / by_offset),
        ],
        load(),
    )


if __name__ == "__main__":
    main()
