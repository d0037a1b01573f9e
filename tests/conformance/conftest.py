"""A graph with effects, parallel sends and a subgraph, and runs with a lease to drive it with."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Callable
from contextlib import nullcontext
from typing import Annotated, Any, TypedDict
from uuid import UUID, uuid4

import pytest
from langgraph.channels import EphemeralValue
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

from backend.adapters.db.checkpointer import RunSaver
from backend.adapters.db.commit import Fence
from backend.adapters.db.engine import Sessions
from backend.domain import effect
from backend.domain.comment import CommentType
from backend.domain.role import Role
from backend.domain.run import RunStatus
from backend.domain.task import TaskKind, TaskStatus
from tests.patience import PATIENCE


class State(TypedDict, total=False):
    plan: dict[str, Any]
    done: Annotated[dict[str, str], operator.or_]
    part: str
    effects: Annotated[list[effect.Effect], EphemeralValue(list, guard=False)]


def plan(state: State) -> State:
    tasks = [
        effect.create_task(key, f"Do {key}", task_kind=TaskKind.FEATURE, role=Role.DEVELOPER, depends_on=before)
        for key, before in (("a", []), ("b", []), ("c", ["a", "b"]))
    ]
    note = effect.add_comment(Role.PM, CommentType.PLAN, "Three tasks.", task="a")
    return {"plan": {"tasks": ["a", "b", "c"]}, "effects": [*tasks, note, effect.report_progress(1, 4)]}


def fan_out(state: State) -> list[Send]:
    return [Send("work", {"part": key}) for key in state["plan"]["tasks"]]


def work(state: State) -> State:
    key = state["part"]
    moves = [effect.move_task(key, to) for to in (TaskStatus.READY, TaskStatus.IN_PROGRESS, TaskStatus.DONE)]
    said = effect.add_comment(Role.DEVELOPER, CommentType.PROGRESS, f"{key} is done.", task=key)
    return {"done": {key: "x" * 100}, "effects": [*moves, said]}


def decide(state: State) -> State:
    return {"effects": [effect.end_run(RunStatus.COMPLETED, "All is done.", {"done": sorted(state["done"])})]}


def build(
    *, plan: Callable[[State], Any] = plan, work: Callable[[State], Any] = work, decide: Callable[[State], Any] = decide
) -> StateGraph[Any]:
    graph = StateGraph(State)
    graph.add_node("plan", plan)
    graph.add_node("work", work)
    graph.add_node("decide", decide)
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", fan_out, ["work"])
    graph.add_edge("work", "decide")
    graph.add_edge("decide", END)
    return graph


class Runs:
    """Runs with a lease, a saver for each, and a look at what they wrote."""

    def __init__(self, sessions: Sessions, pool: Any, make_run: Any, *, ahead: bool) -> None:
        self.sessions, self.pool, self.make_run, self.ahead = sessions, pool, make_run, ahead

    async def leased(self) -> Fence:
        async with self.sessions.begin() as session:
            run = await self.make_run(session)
            await session.flush()
        await self.pool.execute(
            "UPDATE projects SET status = 'RUNNING', active_run_id = $1 WHERE id = $2", run.id, run.project_id
        )
        return await self.claim(run.id)

    async def claim(self, run_id: UUID) -> Fence:
        epoch = await self.pool.fetchval(
            "UPDATE project_runs SET status = 'RUNNING', lease_epoch = lease_epoch + 1, claims = claims + 1"
            " WHERE id = $1 RETURNING lease_epoch",
            run_id,
        )
        return Fence(run_id, epoch)

    def saver(self, fence: Fence, **options: Any) -> RunSaver:
        return RunSaver(self.pool, fence, instance="test/1", **options)

    async def drive(self, fence: Fence, graph: StateGraph[Any], **options: Any) -> None:
        saver = self.saver(fence, **options)
        config = {"configurable": {"thread_id": str(fence.run_id)}, "recursion_limit": 100}
        begun = await saver.aget_tuple(config)
        compiled = graph.compile(checkpointer=saver)
        async with saver.ahead() if self.ahead else nullcontext():
            await compiled.ainvoke(None if begun else {"plan": {}}, config, durability="sync")

    async def leased_twin(self, graph: StateGraph[Any]) -> Fence:
        """Another run, driven without any fault: what the first one must look like."""
        fence = await self.leased()
        await self.drive(fence, graph)
        return fence

    async def rows(self, statement: str, *args: Any) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await self.pool.fetch(statement, *args)]

    async def story(self, run_id: UUID) -> list[tuple[Any, ...]]:
        """What a person reads of a run; the same for every way of getting there."""
        return await self.rows(
            "SELECT 'task', key, status FROM tasks WHERE run_id = $1"
            " UNION ALL SELECT 'comment', body, coalesce(node, '') FROM task_comments WHERE run_id = $1"
            " UNION ALL SELECT 'run', status, coalesce(final_report::text, '') FROM project_runs WHERE id = $1"
            " UNION ALL SELECT type, count(*)::text, '' FROM events WHERE run_id = $1"
            "   AND type NOT LIKE 'node.%' GROUP BY type ORDER BY 1, 2, 3",
            run_id,
        )

    async def check_sequence(self, run_id: UUID) -> None:
        numbers = [row[0] for row in await self.rows("SELECT seq FROM events WHERE run_id = $1 ORDER BY seq", run_id)]
        assert numbers == list(range(1, len(numbers) + 1))
        assert await self.pool.fetchval("SELECT event_seq FROM project_runs WHERE id = $1", run_id) == len(numbers)


async def cancelled_it_waits(driven: asyncio.Task[None]) -> None:
    driven.cancel()
    done, _ = await asyncio.wait([driven], timeout=0.2)
    assert not done


async def waits_for_a_lock(runs: Runs) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await runs.rows("SELECT 1 FROM pg_locks WHERE NOT granted"):
            await asyncio.sleep(0.01)


def linear(nodes: dict[str, Any]) -> StateGraph[Any]:
    """A graph of nodes one after the other."""
    graph = StateGraph(State)
    for before, (name, node) in zip((START, *nodes), nodes.items(), strict=False):
        graph.add_node(name, node)
        graph.add_edge(before, name)
    return graph


def task_of(name: str, began: list[str]) -> Any:
    """A node that records a task of its name."""

    def node(state: Any) -> Any:
        began.append(name)
        return {"effects": [effect.create_task(name, name, task_kind=TaskKind.FEATURE, role=Role.DEVELOPER)]}

    return node


def decided(state: Any) -> Any:
    return {"effects": [effect.end_run(RunStatus.COMPLETED, "All is done.", {})]}


@pytest.fixture(params=[False, True], ids=["in_turn", "ahead"])
def runs(sessions: Sessions, pool: Any, make_run: Any, request: pytest.FixtureRequest) -> Runs:
    """Runs whose nodes wait for the commit before them, and runs whose nodes begin ahead of it."""
    return Runs(sessions, pool, make_run, ahead=request.param)


def new_id() -> str:
    return str(uuid4())
