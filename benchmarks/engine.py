"""What a durable node costs: LangGraph's own saver, ours with rows and events, and plain asyncpg as the floor.

One Postgres, one process, rounds of all in turn; medians and ratios. `--url` (or DATABASE_URL) names a server on
which databases may be made; without it the embedded one is started. WAL, table bytes and transactions are per run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID, uuid4

import asyncpg
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, StateGraph
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from backend import loops
from backend.adapters.db import migrate
from backend.adapters.db.checkpointer import GroupCommit, RunSaver
from backend.adapters.db.commit import Fence
from backend.adapters.db.pool import open_pool, plain_url
from backend.domain import effect
from backend.domain.comment import CommentType
from backend.domain.role import Role
from backend.domain.run import RunStatus
from backend.domain.task import TaskKind
from backend.engine.driving import drive, prepare
from backend.engine.embedded import Stack
from backend.settings import Settings
from benchmarks.states import NODES, SHAPES, Shape, merge, text

os.environ.setdefault("LANGGRAPH_STRICT_MSGPACK", "true")
PIECES = 4
LOG_FILES = 100


def recorded(node: int, run: int) -> list[effect.Effect]:
    """A task, a comment and progress; the last node also ends the run."""
    effects = [
        effect.create_task(f"T{node}", f"Task {node}", task_kind=TaskKind.FEATURE, role=Role.DEVELOPER),
        effect.add_comment(Role.DEVELOPER, CommentType.PROGRESS, text(node, run, 200), task=f"T{node}"),
        effect.report_progress(node, NODES),
    ]
    if node == NODES:
        effects.append(effect.end_run(RunStatus.COMPLETED, "Done.", {"parts": NODES}))
    return effects


def build(shape: Shape, *, effects: bool) -> StateGraph[Any]:
    graph = StateGraph(shape.state)
    for number in range(1, NODES + 1):

        async def node(state: Any, number: int = number) -> Any:
            update = shape.update(number, state["run"])
            if effects:
                update["effects"] = recorded(number, state["run"])
            return update

        graph.add_node(f"node_{number}", node)
        graph.add_edge(START if number == 1 else f"node_{number - 1}", f"node_{number}")
    graph.add_edge(f"node_{NODES}", END)
    return graph


class Stock:
    """LangGraph and its own saver, checkpoint only."""

    name = "LangGraph + AsyncPostgresSaver"

    def __init__(self, shape: Shape) -> None:
        self.shape = shape

    async def open(self, url: str) -> None:
        self.pool = AsyncConnectionPool(
            plain_url(url),
            min_size=1,
            max_size=10,
            open=False,
            kwargs={"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row},
        )
        await self.pool.open()
        # One saver of the process over a pool, as its documentation shows; it lets one operation through at a time.
        saver = AsyncPostgresSaver(self.pool)
        await saver.setup()
        self.graph = build(self.shape, effects=False).compile(checkpointer=saver)

    async def prepare(self, count: int) -> list[Any]:
        return [uuid4() for _ in range(count)]

    async def run(self, identity: Any, number: int) -> None:
        config: Any = {"configurable": {"thread_id": str(identity)}}
        await self.graph.ainvoke(self.shape.begin(number), config, durability="sync")

    async def close(self) -> None:
        await self.pool.close()


class StockEach(Stock):
    """The same with a saver for each run over the shared pool, so that no run waits for another one's lock."""

    name = "the same, a saver for each run"

    async def run(self, identity: Any, number: int) -> None:
        graph = self.graph.copy({"checkpointer": AsyncPostgresSaver(self.pool)})
        config: Any = {"configurable": {"thread_id": str(identity)}}
        await graph.ainvoke(self.shape.begin(number), config, durability="sync")


class Nothing(BaseCheckpointSaver[int]):
    """A saver that keeps nothing and fails nobody."""

    async def aget_tuple(self, config: Any) -> None:
        return None

    async def aput(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        named = config["configurable"]
        return {"configurable": named | {"checkpoint_ns": "", "checkpoint_id": checkpoint["id"]}}

    async def aput_writes(self, *args: Any, **options: Any) -> None:
        return None


class Bare(Stock):
    """LangGraph's loop alone: what is left of any engine once its saver costs nothing."""

    name = "LangGraph, a saver of nothing"

    async def open(self, url: str) -> None:
        self.pool = AsyncConnectionPool(plain_url(url), min_size=1, max_size=1, open=False)
        self.graph = build(self.shape, effects=True).compile(checkpointer=Nothing())


class Written(Nothing):
    """A saver that writes what changed as one row by one statement a superstep, and could not read it back."""

    def __init__(self, pool: Any) -> None:
        super().__init__()
        self.pool = pool

    async def aput(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        values = checkpoint["channel_values"]
        changed = {name: values[name] for name in new_versions if name in values and name != "effects"}
        thread, text = config["configurable"]["thread_id"], json.dumps(changed)
        await self.pool.execute("INSERT INTO written VALUES ($1, $2, $3)", UUID(thread), UUID(checkpoint["id"]), text)
        return await super().aput(config, checkpoint, metadata, new_versions)


class Least(Stock):
    """What durable means at the least: LangGraph, and one small commit before the next node begins; no rows."""

    name = "LangGraph, one INSERT a node"

    async def open(self, url: str) -> None:
        self.pool = await open_pool(url, size=10)
        await self.pool.execute("CREATE TABLE IF NOT EXISTS written (thread uuid, id uuid PRIMARY KEY, state text)")
        self.graph = build(self.shape, effects=True).compile(checkpointer=Written(self.pool))


class Rows:
    """Projects and runs for those who need them; made outside the clock."""

    pool: Any

    def __init__(self, shape: Shape) -> None:
        self.shape = shape

    async def prepare(self, count: int) -> list[Any]:
        made = await self.pool.fetch(
            "WITH p AS (INSERT INTO projects (name, brief, status, template_slug, template_version)"
            " SELECT 'bench', 'brief', 'RUNNING', 'standard', 1 FROM generate_series(1, $1) RETURNING id)"
            " INSERT INTO project_runs (project_id, number, status, lease_owner, lease_epoch, lease_expires_at, graph,"
            " graph_version, template_slug, template_version, brief, config_snapshot, started_at)"
            " SELECT id, 1, 'RUNNING', 'bench', 1, now() + interval '1 hour', 'bench', '1', 'standard', 1, 'brief',"
            " $2::jsonb, now() FROM p RETURNING id, project_id",
            count,
            json.dumps({"padding": text(0, 0, 3000)}),
        )
        await self.pool.execute(
            "UPDATE projects p SET active_run_id = r.id FROM project_runs r WHERE r.project_id = p.id"
            " AND p.active_run_id IS NULL AND r.ended_at IS NULL"
        )
        return [(row["id"], row["project_id"]) for row in made]

    async def close(self) -> None:
        await self.pool.close()


class Ours(Rows):
    """The same graph with our saver: checkpoint, task, comment, events and totals."""

    name = "the company's engine"

    async def open(self, url: str) -> None:
        self.pool = await open_pool(url, size=10)
        self.graph = prepare(build(self.shape, effects=True).compile())
        self.group = GroupCommit(self.pool)

    async def run(self, identity: Any, number: int) -> None:
        saver = RunSaver(self.pool, Fence(identity[0], 1), instance="bench", begun=False, group=self.group)
        config: Any = {"configurable": {"thread_id": str(identity[0])}}
        async with saver.ahead():
            await drive(self.graph, saver, self.shape.begin(number), config)


class Floor(Rows):
    """Plain asyncpg: one transaction a node with the same rows, and the state the node added; no graph at all."""

    name = "plain asyncpg (floor)"

    async def open(self, url: str) -> None:
        self.pool = await open_pool(url, size=10)

    async def run(self, identity: Any, number: int) -> None:
        state = self.shape.begin(number)
        for node in range(1, NODES + 1):
            changed = self.shape.update(node, number)
            if "board" in changed:
                changed["board"] = merge(state.get("board"), changed["board"])
                changed["notes"] = state.get("notes", []) + changed["notes"]
            written = state | changed if node == 1 else changed
            state |= changed
            async with self.pool.acquire() as connection, connection.transaction():
                await self._node(connection, identity, node, text(node, number, 200), json.dumps(written))

    async def _node(self, connection: Any, identity: tuple[UUID, UUID], node: int, said: str, written: str) -> None:
        run, project = identity
        told = ["task.created", "comment.added", "node.finished", *(["run.completed"] if node == NODES else [])]
        seq = await connection.fetchval(
            "UPDATE project_runs SET event_seq = event_seq + $3, claims = 0, current_node = $2, progress = $4,"
            " head_checkpoint_id = $5, updated_at = clock_timestamp() WHERE id = $1 AND lease_epoch = 1"
            " RETURNING event_seq",
            run,
            f"node_{node}",
            len(told),
            node * 100 // NODES,
            uuid4(),
        )
        await connection.execute(
            "INSERT INTO checkpoints (thread_id, namespace, number, checkpoint_id, metadata, state, channel_values)"
            " VALUES ($1, '', $2, $3, '{}', $4, $5)",
            run,
            node,
            uuid4(),
            json.dumps({"versions": {f"channel_{n}": n for n in range(1, node + 1)}}),
            written,
        )
        task = uuid4()
        await connection.execute(
            "INSERT INTO tasks (id, run_id, key, title, kind, assigned_role) VALUES ($1, $2, $3, $4, 'feature',"
            " 'developer')",
            task,
            run,
            f"T{node}",
            f"Task {node}",
        )
        await connection.execute(
            "INSERT INTO task_comments (run_id, task_id, author_role, author_name, comment_type, body, node)"
            " VALUES ($1, $2, 'developer', 'developer', 'progress', $3, $4)",
            run,
            task,
            said,
            f"node_{node}",
        )
        await connection.executemany(
            "INSERT INTO events (project_id, run_id, seq, type, source, payload) VALUES ($1, $2, $3, $4, 'engine', $5)",
            [
                (project, run, seq - len(told) + place, event, json.dumps({"node": f"node_{node}", "task": f"T{node}"}))
                for place, event in enumerate(told, 1)
            ],
        )
        if node == NODES:
            await connection.execute(
                "UPDATE project_runs SET status = 'COMPLETED', ended_at = now(), final_report = '{}', lease_owner ="
                " NULL, lease_expires_at = NULL WHERE id = $1",
                run,
            )
            await connection.execute(
                "UPDATE projects SET status = 'COMPLETED', active_run_id = NULL WHERE id = $1", project
            )


@dataclass
class Figures:
    """What was measured of one contender."""

    latency: list[float] = field(default_factory=list)
    throughput: list[float] = field(default_factory=list)
    wal: list[float] = field(default_factory=list)
    table: list[float] = field(default_factory=list)
    transactions: list[float] = field(default_factory=list)


async def counters(connection: Any) -> tuple[int, int]:
    """WAL position, and bytes of all tables with their indexes."""
    wal = await connection.fetchval("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint")
    size = await connection.fetchval(
        "SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class WHERE relkind = 'r'"
        " AND relnamespace = 'public'::regnamespace"
    )
    return int(wal), int(size)


async def in_parallel(contender: Any, identities: list[Any], at_once: int) -> list[float]:
    """Run them all, so many at once; returns when each ended, in seconds."""
    slots, ends = asyncio.Semaphore(at_once), list[float]()

    async def one(number: int, identity: Any) -> None:
        async with slots:
            await contender.run(identity, number)
            ends.append(time.perf_counter())

    await asyncio.gather(*(one(number, identity) for number, identity in enumerate(identities)))
    return ends


def rate(ends: list[float], at_once: int) -> float:
    """Runs a second while `at_once` were at work: from the end of those that began together until no other begins."""
    counted = ends[at_once - 1 : -at_once]
    return (len(counted) - 1) / (counted[-1] - counted[0])


async def one_at_a_time(contenders: list[Any], found: dict[str, Figures], runs: int) -> None:
    """Latency, each run of one contender beside one of every other."""
    identities = [await contender.prepare(runs) for contender in contenders]
    for number in range(runs):
        for place in range(len(contenders)):
            turn = (number + place) % len(contenders)
            began = time.perf_counter()
            await contenders[turn].run(identities[turn][number], number)
            found[contenders[turn].name].latency.append((time.perf_counter() - began) * 1000)


async def many_at_once(sides: list[tuple[Any, Any]], found: dict[str, Figures], many: int, at_once: int) -> None:
    """Throughput, WAL and table bytes, in pieces that take turns: a machine changes from minute to minute.

    A checkpoint makes the next write of each page log the whole page: the first piece after it is not counted.
    """
    await sides[0][1].execute("CHECKPOINT")
    for piece in range(PIECES + 1):
        for contender, connection in sides[piece % len(sides) :] + sides[: piece % len(sides)]:
            identities = await contender.prepare(many // PIECES)
            before = await counters(connection)
            ends, after = await in_parallel(contender, identities, at_once), await counters(connection)
            if piece:
                figures = found[contender.name]
                figures.throughput.append(rate(ends, at_once))
                figures.wal.append((after[0] - before[0]) / len(identities))
                figures.table.append((after[1] - before[1]) / len(identities))


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
        if not isinstance(contender, Stock):
            await migrate.upgrade(url)
        await contender.open(url)
        connections.append(await asyncpg.connect(url))
        await in_parallel(contender, await contender.prepare(at_once), at_once)
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
    contenders: list[Any] = [Stock(shape), StockEach(shape), Bare(shape), Least(shape), Ours(shape), Floor(shape)]
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
        f"{'':38}{'ms a run':>10}{f'runs/s at {at_once}':>14}{'WAL kB':>9}{'table kB':>10}{'transactions':>14}",
    ]
    for name, one in found.items():
        lines.append(
            f"{name:38}{middle(one.latency):10.2f}{middle(one.throughput):14.1f}{middle(one.wal) / 1000:9.1f}"
            f"{middle(one.table) / 1000:10.1f}{middle(one.transactions):14.1f}"
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


def main(argv: list[str] | None = None, run: Callable[..., Awaitable[dict[str, Figures]]] = bench) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default=os.environ.get("DATABASE_URL"), help="a server on which databases may be made")
    parser.add_argument("--state", choices=[*SHAPES, "both"], default="both", help="what the graph's state is like")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--single", type=int, default=20, help="runs one at a time, each round")
    parser.add_argument("--many", type=int, default=1024, help="runs for throughput, each round")
    parser.add_argument("--at-once", type=int, default=32)
    asked = parser.parse_args(argv)
    with ExitStack() as held:
        url = asked.url
        if not url:
            home = held.enter_context(TemporaryDirectory(prefix="company-bench-"))
            url = held.enter_context(Stack.start(Settings(home=Path(home)))).database_url
            loops.run(in_service(url))
        for name, shape in SHAPES.items():
            if asked.state in {name, "both"}:
                found = loops.run(run(url, shape, asked.rounds, asked.single, asked.many, asked.at_once))
                print(table(found, shape.title, asked.at_once), end="\n\n", flush=True)
    print(NOTES)


if __name__ == "__main__":
    main()
