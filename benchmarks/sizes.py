"""A run of 200 kB beside one of 20 kB: the time that durable nodes take must hardly grow with what they carry."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from functools import partial
from typing import Any

import asyncpg

from backend.adapters.db import migrate
from benchmarks.contenders import Ours
from benchmarks.engine import in_parallel
from benchmarks.rig import place, told
from benchmarks.rig.work import load
from benchmarks.states import PART, Parts, Shape, parts_update

TIMES = (1, 10)


def update(times: int, node: int, run: int) -> dict[str, Any]:
    made = parts_update(node, run)
    made[f"part_{node}"]["text"] *= times
    return made


def shape(times: int) -> Shape:
    size = 7 * PART * times // 1000
    return Shape(f"{size} kB in one dict for each artifact", Parts, lambda run: {"run": run}, partial(update, times))


async def bench(url: str, rounds: int, runs: int) -> dict[int, list[float]]:
    contenders = {times: Ours(shape(times)) for times in TIMES}
    found: dict[int, list[float]] = {times: [] for times in TIMES}
    await migrate.upgrade(url)
    for contender in contenders.values():
        await contender.open(url)
        await in_parallel(contender, await contender.prepare(20), 5)
    gc.collect()
    gc.freeze()
    for _ in range(rounds):
        identities = {times: await contender.prepare(runs) for times, contender in contenders.items()}
        for number in range(runs):
            for times in TIMES if number % 2 else TIMES[::-1]:
                began = time.perf_counter()
                await contenders[times].run(identities[times][number], number)
                found[times].append((time.perf_counter() - began) * 1000)
    for contender in contenders.values():
        await contender.close()
    return found


async def stored(url: str) -> str:
    """How much of it the tables hold."""
    connection = await asyncpg.connect(url)
    size = await connection.fetchval("SELECT pg_size_pretty(pg_total_relation_size('checkpoints'))")
    await connection.close()
    return f"Checkpoints of all these runs: {size}."


def main() -> None:
    options = place.parser(__doc__, rounds=5)
    options.add_argument("--runs", type=int, default=30, help="runs of each size, each round")
    asked = options.parse_args()
    with place.servers() as servers, servers.database() as url:
        found = asyncio.run(bench(url, asked.rounds, asked.runs))
        kept = asyncio.run(stored(url))
    middle = statistics.median
    rows = [(shape(times).title, middle(found[times]), statistics.quantiles(found[times], n=20)[-1]) for times in TIMES]
    ratio = told.Ratio("time of 200 kB / time of 20 kB", middle(found[10]) / middle(found[1]), "<= 1.3")
    told.tell(
        "What a run carries",
        told.table(("engine alone, one run at a time", "ms median", "ms 95th"), rows),
        [ratio],
        kept,
        load(),
    )


if __name__ == "__main__":
    main()
