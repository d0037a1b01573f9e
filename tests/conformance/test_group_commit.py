"""Commits of several runs in one statement: none waits for company, none suffers from another."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import asyncpg
import pytest

from backend.adapters.db.checkpointer import GroupCommit, LeaseLost, grouping
from backend.domain import effect
from backend.engine.driving import drive, prepare
from backend.errors import Invalid
from tests.conformance.conftest import (
    Runs,
    build,
    cancelled_it_waits,
    decide,
    decided,
    linear,
    plan,
    task_of,
    waits_for_a_lock,
    work,
)
from tests.patience import PATIENCE

MANY = 12


class Counting(asyncpg.Connection):  # type: ignore[misc]  # asyncpg ships no types
    """A connection that counts the shared statements and the commits in them."""

    sizes: ClassVar[list[int]] = []

    async def fetch(self, query: str, *args: Any, **options: Any) -> Any:
        if query.startswith("WITH given"):
            self.sizes.append(len(args[0]) if isinstance(args[0], list) else 1)
        return await super().fetch(query, *args, **options)


async def test_runs_that_commit_at_once_share_statements_and_stay_whole(runs: Runs, database_url: str) -> None:
    fences = [await runs.leased() for _ in range(MANY)]
    async with asyncpg.create_pool(database_url, connection_class=Counting, min_size=1, max_size=4) as pool:
        together = Runs(runs.sessions, pool, runs.make_run, ahead=runs.ahead)
        group = GroupCommit(pool, flights=1)
        await asyncio.gather(*(together.drive(fence, build(), group=group) for fence in fences))
    assert max(Counting.sizes) > 1
    whole = await runs.story((await runs.leased_twin(build())).run_id)
    for fence in fences:
        assert await runs.story(fence.run_id) == whole
        await runs.check_sequence(fence.run_id)


async def test_a_commit_that_is_refused_stops_its_own_run_alone(runs: Runs) -> None:
    group = GroupCommit(runs.pool, flights=1)

    def refused(state: Any) -> Any:
        finding = effect.record_finding(
            "f", source="review", scanner="lead", rule="r", severity="HIGH", message="m", status="open"
        )
        return {**plan(state), "effects": [finding | {"severity": "HORRIBLE"}]}

    fences = [await runs.leased() for _ in range(MANY)]
    driven = [
        runs.drive(fence, build(plan=refused) if n == 0 else build(), group=group) for n, fence in enumerate(fences)
    ]
    ends = await asyncio.gather(*driven, return_exceptions=True)
    assert isinstance(ends[0], Invalid)
    assert ends[1:] == [None] * (MANY - 1)
    assert await runs.rows("SELECT status, count(*) FROM project_runs GROUP BY status ORDER BY status") == [
        ("COMPLETED", MANY - 1),
        ("RUNNING", 1),
    ]


async def test_a_commit_without_the_lease_stops_its_own_run_alone(runs: Runs) -> None:
    group = GroupCommit(runs.pool, flights=1)
    fences = [await runs.leased() for _ in range(MANY)]
    await runs.claim(fences[0].run_id)
    ends = await asyncio.gather(*(runs.drive(fence, build(), group=group) for fence in fences), return_exceptions=True)
    assert isinstance(ends[0], LeaseLost)
    assert ends[1:] == [None] * (MANY - 1)
    assert await runs.rows("SELECT count(*) FROM tasks WHERE run_id = $1", fences[0].run_id) == [(0,)]


async def test_a_run_whose_row_is_held_waits_by_itself(runs: Runs) -> None:
    group = GroupCommit(runs.pool, flights=1)
    held, *others = [await runs.leased() for _ in range(MANY)]
    async with runs.pool.acquire() as connection, connection.transaction():
        await connection.execute("SELECT 1 FROM project_runs WHERE id = $1 FOR UPDATE", held.run_id)
        ends = asyncio.gather(*(runs.drive(fence, build(), group=group) for fence in others))
        waits = asyncio.create_task(runs.drive(held, build(), group=group))
        await ends
        assert not waits.done()
    await waits
    assert await runs.rows("SELECT DISTINCT status FROM project_runs") == [("COMPLETED",)]


async def test_a_statement_that_waits_for_a_lock_of_somebody_keeps_no_other_run_waiting(runs: Runs) -> None:
    group = GroupCommit(runs.pool)
    held, *others = [await runs.leased() for _ in range(MANY)]
    of_project = "FROM projects p JOIN project_runs r ON r.project_id = p.id WHERE r.id = $1 FOR UPDATE OF p"
    async with runs.pool.acquire() as connection, connection.transaction():

        async def lock(state: Any) -> Any:
            # The first commits are over: what this node commits goes the shared way.
            await connection.execute(f"SELECT 1 {of_project}", held.run_id)
            return decide(state)

        waits = asyncio.create_task(runs.drive(held, build(decide=lock), group=group))
        await waits_for_a_lock(runs)
        waiting = "(SELECT pid FROM pg_locks WHERE NOT granted)"
        stuck = f"SELECT pid, query_start FROM pg_stat_activity WHERE pid IN {waiting}"
        first = await runs.rows(stuck)
        await asyncio.gather(*(runs.drive(fence, build(), group=group) for fence in others))
        assert (await runs.rows(stuck), waits.done()) == (first, False), "they waited until it was given up"
    await waits
    assert await runs.rows("SELECT DISTINCT status FROM project_runs") == [("COMPLETED",)]


async def test_a_commit_that_is_cancelled_before_it_was_sent_writes_nothing(runs: Runs) -> None:
    group = GroupCommit(runs.pool, flights=1)
    first, second = await runs.leased(), await runs.leased()
    async with runs.pool.acquire() as connection, connection.transaction():
        await connection.execute("LOCK TABLE tasks IN EXCLUSIVE MODE")
        stuck = asyncio.create_task(runs.drive(first, build(), group=group))
        await waits_for_a_lock(runs)
        dropped = asyncio.create_task(runs.drive(second, build(), group=group))
        while not group.waiting:
            await asyncio.sleep(0.01)
        dropped.cancel()
        await asyncio.wait([dropped])
    await stuck
    assert await runs.rows("SELECT count(*) FROM checkpoints WHERE thread_id = $1", second.run_id) == [(0,)]
    assert await runs.rows("SELECT status FROM project_runs WHERE id = $1", first.run_id) == [("COMPLETED",)]


async def test_a_commit_that_is_cancelled_on_its_way_is_over_before_its_run_goes_on(runs: Runs) -> None:
    group = GroupCommit(runs.pool, flights=1)
    fence = await runs.leased()
    async with runs.pool.acquire() as connection, connection.transaction():
        await connection.execute("LOCK TABLE tasks IN EXCLUSIVE MODE")
        driven = asyncio.create_task(runs.drive(fence, build(), group=group))
        await waits_for_a_lock(runs)
        await cancelled_it_waits(driven)
    with pytest.raises(asyncio.CancelledError):
        await driven
    assert await runs.rows("SELECT count(*) FROM tasks WHERE run_id = $1", fence.run_id) == [(3,)]
    await runs.drive(await runs.claim(fence.run_id), build(), group=group)
    whole = await runs.leased_twin(build(work=work))
    assert await runs.story(fence.run_id) == await runs.story(whole.run_id)


class Cancelling(asyncpg.Connection):  # type: ignore[misc]  # asyncpg ships no types
    """A connection that cancels a run in the very turn in which the answer to the statement that it shares arrives."""

    victim: ClassVar[asyncio.Task[None] | None] = None

    async def fetch(self, query: str, *args: Any, **options: Any) -> Any:
        answer = await super().fetch(query, *args, **options)
        if Cancelling.victim is not None and args and isinstance(args[0], list):
            Cancelling.victim.cancel()
            Cancelling.victim = None
        return answer


async def test_a_run_that_is_cancelled_as_its_commit_arrives_takes_no_other_with_it(
    runs: Runs, database_url: str
) -> None:
    fences = [await runs.leased() for _ in range(MANY)]
    async with asyncpg.create_pool(database_url, connection_class=Cancelling, min_size=1, max_size=4) as pool:
        group = GroupCommit(pool, flights=1)
        driven = [asyncio.create_task(runs.drive(fence, build(), group=group)) for fence in fences]
        # The first to queue leaves alone; the second is in the first statement that is shared.
        Cancelling.victim = driven[1]
        async with asyncio.timeout(PATIENCE):
            ends = await asyncio.gather(*driven, return_exceptions=True)
    assert Cancelling.victim is None
    assert [type(end) for end in ends] == [asyncio.CancelledError if n == 1 else type(None) for n in range(MANY)]
    await runs.drive(await runs.claim(fences[1].run_id), build())
    whole = await runs.story((await runs.leased_twin(build())).run_id)
    for fence in fences:
        assert await runs.story(fence.run_id) == whole


async def test_a_connection_that_died_between_two_commits_costs_nobody_anything(
    runs: Runs, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = GroupCommit(runs.pool, flights=1)
    killed: list[int] = []
    # A connection of its own: one from the pool could be the very one that it looks for.
    killer = await asyncpg.connect(database_url)

    async def kill(state: Any) -> Any:
        # The flight rests over its connection while this node runs: the last statement on it was a shared commit.
        async with asyncio.timeout(PATIENCE):
            while not killed:
                found = await killer.fetch(
                    "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                    " AND query LIKE 'WITH given%' AND state = 'idle'"
                )
                killed.extend(row["pid"] for row in found)
        resting.undo()
        return decide(state)

    fence = await runs.leased()
    with monkeypatch.context() as resting:
        resting.setattr(grouping, "_REST_SECONDS", PATIENCE)
        await runs.drive(fence, build(decide=kill), group=group)
    await killer.close()
    await runs.drive(await runs.leased(), build(), group=group)
    whole = await runs.story((await runs.leased_twin(build())).run_id)
    assert await runs.story(fence.run_id) == whole
    assert await runs.rows("SELECT DISTINCT status FROM project_runs") == [("COMPLETED",)]


async def test_a_node_that_is_done_is_committed_before_those_that_wait_for_their_turn(runs: Runs) -> None:
    fence = await runs.leased()
    at_work: list[str] = []
    seen: dict[str, int] = {}

    async def one_by_one(state: Any) -> Any:
        assert not at_work
        at_work.append(state["part"])
        before = len(seen)
        async with asyncio.timeout(PATIENCE):
            while (done := await runs.rows("SELECT count(*) FROM tasks WHERE status = 'DONE'"))[0][0] < before:
                await asyncio.sleep(0.01)
        seen[state["part"]] = done[0][0]
        at_work.clear()
        return work(state)

    compiled = prepare(build(work=one_by_one).compile())
    config = {"configurable": {"thread_id": str(fence.run_id)}}
    await drive(compiled, runs.saver(fence), {"plan": {}}, config, at_once=1)
    assert sorted(seen.values()) == [0, 1, 2]
    assert await runs.story(fence.run_id) == await runs.story((await runs.leased_twin(build())).run_id)


async def test_a_run_that_is_cancelled_at_its_end_waits_for_the_commit_that_is_on_its_way(runs: Runs) -> None:
    fence = await runs.leased()
    async with runs.pool.acquire() as connection, connection.transaction():
        await connection.execute("LOCK TABLE events IN EXCLUSIVE MODE")
        driven = asyncio.create_task(runs.drive(fence, linear({"decide": decided})))
        await waits_for_a_lock(runs)
        await cancelled_it_waits(driven)
    with pytest.raises(asyncio.CancelledError):
        await driven
    assert await runs.rows("SELECT status FROM project_runs WHERE id = $1", fence.run_id) == [("COMPLETED",)]


async def test_nothing_begins_after_the_end_of_a_run_before_it_is_durable(runs: Runs) -> None:
    """A graph may go on where its run is over; whatever does finds the end in the database."""
    seen: list[str] = []

    async def after(state: Any) -> Any:
        seen.append((await runs.rows("SELECT status FROM project_runs WHERE id = $1", fence.run_id))[0][0])
        return {}

    class Slow(GroupCommit):
        async def _send(self, connection: Any) -> None:
            await asyncio.sleep(0.1)
            await super()._send(connection)

    fence = await runs.leased()
    graph = linear({"one": task_of("one", []), "decide": decided, "after": after})
    await runs.drive(fence, graph, group=Slow(runs.pool))
    assert seen == ["COMPLETED"]
