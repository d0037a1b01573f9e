"""Who drives the same graph, or writes the same rows: what `benchmarks/engine.py` and `benchmarks/sizes.py` measure."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, StateGraph
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from backend.adapters.db.checkpointer import GroupCommit, RunSaver
from backend.adapters.db.commit import Fence
from backend.adapters.db.pool import open_pool, plain_url
from backend.domain import effect
from backend.domain.comment import CommentType
from backend.domain.role import Role
from backend.domain.run import RunStatus
from backend.domain.task import TaskKind
from backend.engine.driving import drive, prepare
from benchmarks.states import NODES, Shape, merge, text


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
