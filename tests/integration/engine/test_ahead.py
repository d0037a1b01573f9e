"""A node may begin before the commit that it follows is durable; what it does to the world waits for that."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.channels import EphemeralValue
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

from backend.adapters.db.checkpointer import GroupCommit
from backend.domain import effect
from backend.domain.comment import CommentType
from backend.domain.graph import GraphSpec
from backend.domain.model import ModelRequest
from backend.domain.ports import RunContext, Visit
from backend.domain.role import Role
from backend.domain.run import RunStatus
from backend.engine.executor import Executor
from backend.engine.loader import Graphs
from tests.integration.engine.conftest import Company, EmptyBench
from tests.patience import PATIENCE


class State(TypedDict, total=False):
    said: str
    effects: Annotated[list[effect.Effect], EphemeralValue(list, guard=False)]


class Held(GroupCommit):
    """Commits that leave when the test says so."""

    held = True

    def leave(self) -> None:
        self.held = False
        self._set_off()

    def _set_off(self) -> None:
        if not self.held:
            super()._set_off()


class World(EmptyBench):
    """Hands that note what they were used for."""

    def __init__(self, company: Company) -> None:
        self.company, self.workspace, self.checks = company, self, self
        self.touched: list[str] = []
        self.began = asyncio.Event()
        self.worker = company.worker("ahead")
        self.worker.workbenches = self._bench
        self.worker.graphs = Graphs([GraphSpec("ahead", "1", "Two nodes", self.graph, lambda facts: {}, (Role.LEAD,))])
        self.worker.group = self.held = Held(self.worker.pool)

    async def _bench(self, facts: Any) -> Any:
        return self

    def toolbox(self, role: Any, tree: Any, note: Any) -> Any:
        return self

    async def files(self, commit: str) -> list[str]:
        self.touched.append("workspace")
        return []

    async def scan(self, commit: str, config: Any) -> None:
        self.touched.append("checks")

    async def pending_diff(self) -> str:
        self.touched.append("toolbox")
        return ""

    def graph(self) -> Any:
        async def first(state: State) -> State:
            return {"said": "first", "effects": [effect.add_comment(Role.LEAD, CommentType.PROGRESS, "First.")]}

        async def second(state: State, runtime: Runtime[RunContext]) -> State:
            self.began.set()
            context, seat = runtime.context, runtime.context.seat(Visit("second", 1))
            tools: Any = seat.toolbox(Role.LEAD, None)  # type: ignore[arg-type]  # no tree is looked at
            ways: list[Any] = [
                context.settled(),
                context.workspace.files("head"),
                context.checks.scan("head", None),  # type: ignore[arg-type]  # no config is looked at
                tools.pending_diff(),
                seat.ask(ModelRequest(Role.LEAD, ({"role": "user", "content": "x"},))),
                seat.note("command.finished", {}),
            ]
            async with asyncio.TaskGroup() as group:
                for way in ways:
                    group.create_task(self._noted(way))
            return {"effects": [effect.end_run(RunStatus.COMPLETED, "Done.", {})]}

        built = StateGraph(State, context_schema=RunContext)
        built.add_node("first", first)
        built.add_node("second", second)
        built.add_edge(START, "first")
        built.add_edge("first", "second")
        built.add_edge("second", END)
        return built

    async def _noted(self, way: Any) -> None:
        await way
        self.touched.append("returned")

    async def events(self) -> list[str]:
        rows = await self.company.pool.fetch("SELECT type FROM events ORDER BY seq")
        return [row["type"] for row in rows if row["type"] in {"node.finished", "command.finished"}]


@pytest.fixture
def world(company: Company) -> World:
    return World(company)


async def begin(world: World, company: Company, *, claims: int = 0) -> tuple[Any, asyncio.Task[None]]:
    run_id = await company.run(graph="ahead")
    await company.pool.execute(
        "UPDATE project_runs SET graph = 'ahead', graph_version = '1', claims = $2 WHERE id = $1", run_id, claims
    )
    return run_id, asyncio.create_task(_drive(world.worker, run_id))


async def began_ahead(world: World, company: Company) -> tuple[Any, asyncio.Task[None]]:
    run_id, driving = await begin(world, company)
    await asyncio.wait_for(world.began.wait(), PATIENCE)
    # Whatever would not wait has gone on by then.
    await asyncio.sleep(0.2)
    assert (world.touched, company.transport.calls, await world.events()) == ([], [], [])
    return run_id, driving


async def _drive(worker: Executor, run_id: Any) -> None:
    await worker.execute(run_id)


async def test_a_node_that_began_ahead_touches_nothing_before_the_commit(world: World, company: Company) -> None:
    run_id, driving = await began_ahead(world, company)
    world.held.leave()
    await driving
    assert (await company.row(run_id))["status"] == "COMPLETED"
    assert sorted(world.touched) == sorted(["workspace", "checks", "toolbox"] + ["returned"] * 6)
    assert len(company.transport.calls) == 1
    assert await world.events() == ["node.finished", "command.finished", "node.finished"]
    await company.check(run_id)


async def test_a_node_that_began_ahead_of_a_commit_that_fails_touches_nothing(world: World, company: Company) -> None:
    run_id, driving = await began_ahead(world, company)
    await company.pool.execute(
        "UPDATE project_runs SET lease_epoch = lease_epoch + 1, lease_owner = 'another' WHERE id = $1", run_id
    )
    world.held.leave()
    await driving
    assert (world.touched, company.transport.calls, await world.events()) == ([], [], [])


async def test_a_stop_takes_back_a_commit_that_was_not_sent(world: World, company: Company) -> None:
    run_id, driving = await began_ahead(world, company)
    await company.pool.execute("UPDATE project_runs SET requested = 'stop' WHERE id = $1", run_id)
    await driving
    assert (await company.row(run_id))["status"] == "STOPPED_USER"
    assert (world.touched, company.transport.calls, await world.events()) == ([], [], [])
    world.held.leave()
    await company.check(run_id)
    assert await company.pool.fetchval("SELECT count(*) FROM checkpoints") == 0


async def test_nodes_of_a_run_whose_worker_died_begin_in_turn(world: World, company: Company) -> None:
    """Else the node that takes its worker down may do so before the commit that says that it had begun."""
    run_id, driving = await begin(world, company, claims=1)
    # The first commit is held back: whoever began ahead of it would have begun by then.
    await asyncio.sleep(0.5)
    assert not world.began.is_set()
    world.held.leave()
    await driving
    assert (await company.row(run_id))["status"] == "COMPLETED"
    await company.check(run_id)
