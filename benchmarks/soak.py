"""Memory over mixed load: runs in waves, list pages and followers, for minutes (`--minutes 60`: an hour).

`--pause` leaves the machine to others for a while after each wave.

What a process holds is sampled each second; the median of the last third is compared with that of the second third:
the first one fills caches and pools.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import time
from typing import Any

import asyncpg

from benchmarks.rig import place, told
from benchmarks.rig.place import memory_mb
from benchmarks.rig.wire import Lines
from benchmarks.rig.work import load


async def sample(pids: dict[str, int], found: dict[str, list[float]], until: float) -> None:
    while time.monotonic() < until:
        for name, pid in pids.items():
            found[name].append(memory_mb(pid))
        await asyncio.sleep(1)


async def waves(database: Any, lines: Lines, size: int, until: float, pause: float) -> int:
    """Runs of 20 and 200 kB, a wave after the other; each run gets a follower to its end."""
    done = 0
    while time.monotonic() < until:
        made = await database.fetch(
            "INSERT INTO projects (name, brief, status, template_slug, template_version, config_patch)"
            " SELECT 'bench', 'run=' || n || CASE WHEN n % 4 = 0 THEN ' part=28000' ELSE '' END, 'READY', 'lean', 1,"
            " $2::jsonb FROM generate_series(1, $1) n RETURNING id",
            size,
            json.dumps({"graph": "steps", "sandbox": {"level": "unsafe"}}),
        )
        answers = await asyncio.gather(*(lines.ask("POST", f"/api/projects/{row['id']}/runs", {}) for row in made))
        runs = [answer.json()["id"] for answer in answers]
        await asyncio.gather(*(lines.ask("GET", f"/api/runs/{run}/events") for run in runs))
        done += size
        await asyncio.sleep(pause)
    return done


async def pages(lines: Lines, until: float, pause: float) -> int:
    answered = 0
    while time.monotonic() < until:
        for path in ("/api/runs?limit=50", "/api/projects?limit=50", "/api/tasks?limit=200", "/metrics"):
            await lines.ask("GET", path)
            answered += 1
        await asyncio.sleep(max(0.2, pause / 10))
    return answered


async def bench(
    company: place.Company, minutes: float, size: int, pause: float
) -> tuple[dict[str, list[float]], int, int]:
    database = await asyncpg.connect(company.database_url)
    until = time.monotonic() + minutes * 60
    pids = {"api": company.api.process.pid, "worker": company.workers[0].process.pid}
    found: dict[str, list[float]] = {name: [] for name in pids}
    with contextlib.closing(Lines(company.port, size + 4)) as lines:
        runs, answered, _ = await asyncio.gather(
            waves(database, lines, size, until, pause), pages(lines, until, pause), sample(pids, found, until)
        )
    await database.close()
    return found, runs, answered


def main() -> None:
    options = place.parser(__doc__, rounds=1)
    options.add_argument("--minutes", type=float, default=3.0)
    options.add_argument("--at-once", type=int, default=40, help="runs of a wave")
    options.add_argument("--pause", type=float, default=0.0, help="seconds after each wave")
    asked = options.parse_args()
    with place.servers() as servers, servers.database() as url, place.company(servers, url) as company:
        found, runs, answered = asyncio.run(bench(company, asked.minutes, asked.at_once, asked.pause))
    lines, ratios = [], []
    for name, samples in found.items():
        third = len(samples) // 3
        second, last = statistics.median(samples[third : 2 * third]), statistics.median(samples[2 * third :])
        lines.append((name, samples[0], second, last, max(samples)))
        ratios.append(told.Ratio(f"{name}: last third / second third", last / second, "<= 1.05"))
    told.tell(
        f"Memory over {asked.minutes:g} minutes: {runs:,} runs followed to their end, {answered:,} pages",
        told.table(("MB", "first", "second third", "last third", "most"), lines),
        ratios,
        load(),
    )


if __name__ == "__main__":
    main()
