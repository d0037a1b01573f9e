"""What a durable node costs: LangGraph's own saver, ours with rows and events, and plain asyncpg as the floor.

One Postgres, one process, rounds of all in turn; medians and ratios. `--url` (or DATABASE_URL) names a server on
which databases may be made; without it the embedded one is started. WAL, table bytes, transactions and statements are
per run.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import asyncpg

from backend import loops
from backend.adapters.db import migrate
from backend.adapters.db.pool import plain_url
from backend.engine.embedded import Stack
from backend.settings import Settings
from benchmarks.contenders import Bare, Floor, Least, Ours, Stock, StockEach, recorded
from benchmarks.states import NODES, SHAPES, Shape

os.environ.setdefault("LANGGRAPH_STRICT_MSGPACK", "true")
CONTENDERS: tuple[Any, ...] = (Stock, StockEach, Bare, Least, Ours, Floor)
PIECES = 4
LOG_FILES = 100


@dataclass
class Figures:
    """What was measured of one contender."""

    latency: list[float] = field(default_factory=list)
    throughput: list[float] = field(default_factory=list)
    wal: list[float] = field(default_factory=list)
    table: list[float] = field(default_factory=list)
    transactions: list[float] = field(default_factory=list)
    statements: list[float] = field(default_factory=list)


async def counters(connection: Any) -> tuple[int, int]:
    """WAL position, and bytes of all tables with their indexes."""
    wal = await connection.fetchval("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint")
    size = await connection.fetchval(
        "SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class WHERE relkind = 'r'"
        " AND relnamespace = 'public'::regnamespace"
    )
    return int(wal), int(size)


async def in_parallel(contender: Any, identities: list[Any], at_once: int) -> list[tuple[float, float]]:
    """Run them all, so many at once; returns when each began and ended, in seconds, in the order they began in."""
    slots, lives = asyncio.Semaphore(at_once), list[tuple[float, float]]()

    async def one(number: int, identity: Any) -> None:
        async with slots:
            began = time.perf_counter()
            await contender.run(identity, number)
            lives.append((began, time.perf_counter()))

    await asyncio.gather(*(one(number, identity) for number, identity in enumerate(identities)))
    return sorted(lives)


def rate(lives: list[tuple[float, float]], at_once: int) -> float:
    """Runs a second while `at_once` were at work: once the last has begun, fewer are.

    A run that is at work when the clock stops counts by the part of its life that was before.
    """
    start, stop = lives[at_once - 1][0], lives[-1][0]
    done = sum((min(ended, stop) - max(began, start)) / (ended - began) for began, ended in lives)
    return done / (stop - start)


async def one_at_a_time(contenders: list[Any], found: dict[str, Figures], runs: int) -> None:
    """Latency, each run of one contender beside one of every other."""
    sides = [(contender, await contender.prepare(runs)) for contender in contenders]
    for number in range(runs):
        for contender, identities in turns(sides, number):
            began = time.perf_counter()
            await contender.run(identities[number], number)
            found[contender.name].latency.append((time.perf_counter() - began) * 1000)


def turns(sides: list[tuple[Any, Any]], number: int) -> list[tuple[Any, Any]]:
    """All of them, another one first each time."""
    first = number % len(sides)
    return sides[first:] + sides[:first]


async def many_at_once(sides: list[tuple[Any, Any]], found: dict[str, Figures], many: int, at_once: int) -> None:
    """Throughput, WAL and table bytes, in pieces that take turns: a machine changes from minute to minute.

    A checkpoint makes the next write of each page log the whole page: the first piece after it is not counted.
    """
    await sides[0][1].execute("CHECKPOINT")
    for piece in range(PIECES + 1):
        for contender, connection in turns(sides, piece):
            identities = await contender.prepare(many // PIECES)
            before = await counters(connection)
            lives, after = await in_parallel(contender, identities, at_once), await counters(connection)
            if piece:
                figures = found[contender.name]
                figures.throughput.append(rate(lives, at_once))
                for bytes_of, new, old in zip((figures.wal, figures.table), after, before, strict=True):
                    bytes_of.append((new - old) / len(identities))


async def transactions(contender: Any, connection: Any, url: str, runs: int = 60) -> float:
    """Transactions that one run costs, by the server's own count; sessions report for certain when they end."""
    committed = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
    await contender.close()
    await asyncio.sleep(1)
    before = await connection.fetchval(committed)
    await contender.open(url)
    await in_parallel(contender, await contender.prepare(runs), 1)
    await contender.close()
    await asyncio.sleep(1)
    return float(await connection.fetchval(committed) - before) / runs


async def statements(server: str, shape: Shape, found: dict[str, Figures], runs: int = 20) -> None:
    """Statements that one run costs, BEGIN and COMMIT too, by the server's own count; unknown where it keeps none."""
    contenders = [contender(shape) for contender in CONTENDERS]
    admin = await asyncpg.connect(plain_url(server))
    loaded = await admin.fetchval("SHOW shared_preload_libraries")
    await admin.close()
    if "pg_stat_statements" not in loaded:
        for figures in found.values():
            figures.statements.append(math.nan)
        return
    async with databases(server, len(contenders)) as urls:
        for contender, url in zip(contenders, urls, strict=True):
            await opened(contender, url, 1)
            identities = await contender.prepare(runs)
            connection = await asyncpg.connect(url)
            await connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
            await connection.execute("SELECT pg_stat_statements_reset()")
            await in_parallel(contender, identities, 1)
            counted = await connection.fetchval(
                "SELECT coalesce(sum(calls), 0) FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid"
                " WHERE d.datname = current_database() AND query !~ 'pg_stat_statements'"
            )
            found[contender.name].statements.append(float(counted) / runs)
            await connection.close()
            await contender.close()


async def opened(contender: Any, url: str, at_once: int) -> None:
    """Have a contender ready on a new database, and warm."""
    if not isinstance(contender, Stock):
        await migrate.upgrade(url)
    await contender.open(url)
    await in_parallel(contender, await contender.prepare(at_once), at_once)


async def counts_statements(url: str) -> None:
    """Have our own server count statements once it starts again: not while time is measured, since that takes some."""
    admin = await asyncpg.connect(plain_url(url))
    await admin.execute("ALTER SYSTEM SET shared_preload_libraries = 'pg_stat_statements'")
    await admin.close()


async def in_service(url: str) -> None:
    """Have our own server make log files beforehand, as one in service has them: a new one stops all for 0.1 s."""
    admin = await asyncpg.connect(plain_url(url))
    for setting in ("min_wal_size = '2GB'", "max_wal_size = '4GB'"):
        await admin.execute(f"ALTER SYSTEM SET {setting}")
    await admin.execute("SELECT pg_reload_conf()")
    for _ in range(LOG_FILES):
        # A file that nothing was written to is not left for another one.
        await admin.execute("SELECT pg_logical_emit_message(false, 'bench', 'x'), pg_switch_wal()")
    await admin.execute("CHECKPOINT")
    await admin.close()


def warm_up() -> None:
    """Make all texts."""
    for run in range(64):
        for node in range(1, NODES + 1):
            for shape in SHAPES.values():
                shape.begin(run), shape.update(node, run), recorded(node, run)


@asynccontextmanager
async def databases(server: str, count: int) -> AsyncIterator[list[str]]:
    """New databases, by their URLs."""
    admin = await asyncpg.connect(plain_url(server))
    names = [f"company_bench_{uuid4().hex[:12]}" for _ in range(count)]
    try:
        for name in names:
            await admin.execute(f'CREATE DATABASE "{name}"')
        yield [plain_url(server).rsplit("/", 1)[0] + f"/{name}" for name in names]
    finally:
        for name in names:
            await admin.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        await admin.close()


async def one_round(
    contenders: list[Any], urls: list[str], found: dict[str, Figures], single: int, many: int, at_once: int
) -> None:
    connections = []
    for contender, url in zip(contenders, urls, strict=True):
        await opened(contender, url, at_once)
        connections.append(await asyncpg.connect(url))
    # As a worker does once it is up; it spares all contenders alike.
    loops.settle_down()
    await one_at_a_time(contenders, found, single)
    await many_at_once(list(zip(contenders, connections, strict=True)), found, many, at_once)
    for contender, connection, url in zip(contenders, connections, urls, strict=True):
        if not found[contender.name].transactions:
            found[contender.name].transactions.append(await transactions(contender, connection, url))
        await contender.close()
        await connection.close()


async def bench(server: str, shape: Shape, rounds: int, single: int, many: int, at_once: int) -> dict[str, Figures]:
    """Each round on new databases: what is measured is a run's cost, and not how much earlier rounds have left."""
    warm_up()
    contenders = [contender(shape) for contender in CONTENDERS]
    found = {contender.name: Figures() for contender in contenders}
    for _ in range(rounds):
        async with databases(server, len(contenders)) as urls:
            await one_round(contenders, urls, found, single, many, at_once)
    return found


def table(found: dict[str, Figures], title: str, at_once: int) -> str:
    stock, each, bare, least, ours, floor = found.values()
    middle = statistics.median
    lines = [
        f"{NODES} nodes; {title}; medians",
        f"{'':38}{'ms a run':>10}{f'runs/s at {at_once}':>14}{'WAL kB':>9}{'table kB':>10}"
        f"{'transactions':>14}{'statements':>12}",
    ]
    for name, one in found.items():
        lines.append(
            f"{name:38}{middle(one.latency):10.2f}{middle(one.throughput):14.1f}{middle(one.wal) / 1000:9.1f}"
            f"{middle(one.table) / 1000:10.1f}{middle(one.transactions):14.1f}{middle(one.statements):12.1f}"
        )
    for label, wanted, get, upside in (
        ("latency / LangGraph's saver", "<= 0.50", ours.latency, stock.latency),
        ("the least that is durable / its saver", "", least.latency, stock.latency),
        ("throughput / LangGraph's saver", ">= 5", ours.throughput, stock.throughput),
        ("throughput / its saver per run", "", ours.throughput, each.throughput),
        ("the most that any saver could reach", "", bare.throughput, stock.throughput),
        ("latency / floor", "<= 1.7", ours.latency, floor.latency),
        ("throughput / floor", ">= 0.55", ours.throughput, floor.throughput),
        ("WAL / LangGraph's saver", "<= 0.45", ours.wal, stock.wal),
        ("table bytes / LangGraph's saver", "<= 0.45", ours.table, stock.table),
    ):
        reach = f"   to reach {wanted}" if wanted else ""
        lines.append(f"{label:38}{middle(get) / middle(upside):10.2f}{reach}")
    return "\n".join(lines)


NOTES = """LangGraph's saver is shared by the process over a pool, as its documentation shows: it lets one operation
through at a time. It writes checkpoints only; the engine and the floor also write task, comment, events and totals."""


@contextmanager
def server(url: str | None, home: str) -> Iterator[str]:
    """The server that was named, or our own one, whose data stay in `home`."""
    if url:
        yield url
        return
    with Stack.start(Settings(home=Path(home))) as stack:
        yield stack.database_url


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default=os.environ.get("DATABASE_URL"), help="a server on which databases may be made")
    parser.add_argument("--state", choices=[*SHAPES, "both"], default="both", help="what the graph's state is like")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--single", type=int, default=20, help="runs one at a time, each round")
    parser.add_argument("--many", type=int, default=2048, help="runs for throughput, each round")
    parser.add_argument("--at-once", type=int, default=32)
    asked = parser.parse_args(argv)
    shapes = [shape for name, shape in SHAPES.items() if asked.state in {name, "both"}]
    with TemporaryDirectory(prefix="company-bench-") as home:
        with server(asked.url, home) as url:
            if not asked.url:
                loops.run(in_service(url))
            found = [
                loops.run(bench(url, one, asked.rounds, asked.single, asked.many, asked.at_once)) for one in shapes
            ]
            if not asked.url:
                loops.run(counts_statements(url))
        with server(asked.url, home) as url:
            for shape, figures in zip(shapes, found, strict=True):
                loops.run(statements(url, shape, figures))
                print(table(figures, shape.title, asked.at_once), end="\n\n", flush=True)
    print(NOTES)


if __name__ == "__main__":
    main()
