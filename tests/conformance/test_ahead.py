"""Nodes that begin ahead of the commits before them: how far, what shares a commit, and what becomes of it."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import asyncpg
import pytest

from backend.adapters.db.checkpointer import GroupCommit
from backend.adapters.db.checkpointer.line import MOST_BEHIND
from backend.adapters.db.engine import Sessions
from backend.adapters.db.forking import copy_rows
from backend.domain import effect
from backend.errors import Invalid
from tests.conformance.conftest import Runs, cancelled_it_waits, decided, linear, task_of, waits_for_a_lock
from tests.patience import PATIENCE

NAMES = ("one", "two", "three", "four", "five", "six", "seven")


class Counting(asyncpg.Connection):  # type: ignore[misc]  # asyncpg ships no types
    """A connection that counts the checkpoints in each shared statement."""

    sizes: ClassVar[list[int]] = []

    async def fetch(self, query: str, *args: Any, **options: Any) -> Any:
        if query.startswith("WITH given"):
            # Ids of checkpoints come after what is said of runs: their number, without asking which.
            self.sizes.append(max(len(arg) if isinstance(arg, list) else 1 for arg in args))
        return await super().fetch(query, *args, **options)


@pytest.fixture
def runs(sessions: Sessions, pool: Any, make_run: Any) -> Runs:
    return Runs(sessions, pool, make_run, ahead=True)


def seven(began: list[str], **others: Any) -> dict[str, Any]:
    return {name: others.get(name) or task_of(name, began) for name in NAMES} | {"decide": decided}


async def _as_far_as_may_be(began: list[str]) -> None:
    """The first commit is on its way; as many checkpoints wait as may, the last of them for room."""
    async with asyncio.timeout(PATIENCE):
        while len(began) <= MOST_BEHIND:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    assert began == list(NAMES[: MOST_BEHIND + 1])


async def _same_as_a_calm_one(runs: Runs, run_id: Any, nodes: dict[str, Any]) -> None:
    assert await runs.story(run_id) == await runs.story((await runs.leased_twin(linear(nodes))).run_id)
    await runs.check_sequence(run_id)
    chain = await runs.rows(
        "SELECT c.number, p.number FROM checkpoints c LEFT JOIN checkpoints p ON p.thread_id = c.thread_id"
        " AND p.checkpoint_id = c.parent_id WHERE c.thread_id = $1 ORDER BY 1",
        run_id,
    )
    made = await runs.rows("SELECT key FROM tasks WHERE run_id = $1 ORDER BY created_at", run_id)
    assert [key for (key,) in made] == [name for name in nodes if (name,) in made]
    assert chain == [(1, None), *((number, number - 1) for number in range(2, len(nodes) + 1))]


async def test_what_was_computed_while_a_commit_was_on_its_way_goes_together(runs: Runs, database_url: str) -> None:
    began: list[str] = []
    async with asyncpg.create_pool(database_url, connection_class=Counting, min_size=1, max_size=4) as pool:
        fence = await runs.leased()
        Counting.sizes.clear()
        async with runs.pool.acquire() as connection, connection.transaction():
            await connection.execute("LOCK TABLE tasks IN EXCLUSIVE MODE")
            quick = Runs(runs.sessions, pool, runs.make_run, ahead=True)
            driven = asyncio.create_task(quick.drive(fence, linear(seven(began)), group=GroupCommit(pool)))
            await waits_for_a_lock(runs)
            await _as_far_as_may_be(began)
        await driven
    assert Counting.sizes[:2] == [1, MOST_BEHIND]
    assert sum(Counting.sizes) == len(NAMES) + 1
    await _same_as_a_calm_one(runs, fence.run_id, seven([]))


async def test_a_fork_sees_what_was_true_at_its_checkpoint_and_not_what_shared_its_commit(runs: Runs) -> None:
    began: list[str] = []
    fence = await runs.leased()
    async with runs.pool.acquire() as connection, connection.transaction():
        await connection.execute("LOCK TABLE tasks IN EXCLUSIVE MODE")
        driven = asyncio.create_task(runs.drive(fence, linear(seven(began))))
        await waits_for_a_lock(runs)
        await _as_far_as_may_be(began)
    await driven
    kept = await runs.rows(
        "SELECT checkpoint_id, xmin::text FROM checkpoints WHERE thread_id = $1 ORDER BY number", fence.run_id
    )
    assert len({transaction for _, transaction in kept}) < len(kept)
    for number, (checkpoint_id, _) in enumerate(kept[: len(NAMES)], 1):
        fork = (await runs.leased()).run_id
        async with runs.sessions.begin() as session:
            await copy_rows(session, fence.run_id, checkpoint_id, fork)
        copied = await runs.rows("SELECT key FROM tasks WHERE run_id = $1 ORDER BY created_at", fork)
        assert [key for (key,) in copied] == list(NAMES[:number])


async def test_what_waits_behind_a_commit_is_taken_back_with_its_run(runs: Runs) -> None:
    began: list[str] = []
    group, fence = GroupCommit(runs.pool), await runs.leased()
    async with runs.pool.acquire() as connection, connection.transaction():
        await connection.execute("LOCK TABLE tasks IN EXCLUSIVE MODE")
        driven = asyncio.create_task(runs.drive(fence, linear(seven(began)), group=group))
        await waits_for_a_lock(runs)
        await _as_far_as_may_be(began)
        assert group.waiting == 0
        await cancelled_it_waits(driven)
    with pytest.raises(asyncio.CancelledError):
        await driven
    assert await runs.rows("SELECT key FROM tasks WHERE run_id = $1", fence.run_id) == [("one",)]
    assert await runs.rows("SELECT count(*) FROM checkpoints WHERE thread_id = $1", fence.run_id) == [(1,)]
    await runs.drive(await runs.claim(fence.run_id), linear(seven(began)), group=group)
    assert began[MOST_BEHIND + 1 :] == list(NAMES[1:])
    await _same_as_a_calm_one(runs, fence.run_id, seven([]))


async def test_what_a_shared_commit_leaves_out_goes_one_by_one(runs: Runs) -> None:
    group, fence = GroupCommit(runs.pool), await runs.leased()
    others = [await runs.leased() for _ in range(3)]
    async with runs.pool.acquire() as connection:
        holding = connection.transaction()
        await holding.start()
        await connection.execute("SELECT FROM project_runs WHERE id = $1 FOR UPDATE", fence.run_id)
        driven = asyncio.create_task(runs.drive(fence, linear(seven([])), group=group))
        await waits_for_a_lock(runs)
        await asyncio.gather(*(runs.drive(other, linear(seven([])), group=group) for other in others))
        assert not driven.done()
        await holding.rollback()
    await driven
    for one in (fence, *others):
        await _same_as_a_calm_one(runs, one.run_id, seven([]))


async def test_of_a_shared_commit_that_is_refused_what_came_before_the_fault_stays(runs: Runs) -> None:
    def refused(state: Any) -> Any:
        return {"effects": [found("f") | {"severity": "HORRIBLE"}]}

    nodes = seven([], three=refused)
    fence, other = await runs.leased(), await runs.leased()
    group = GroupCommit(runs.pool, flights=1)
    ends = await asyncio.gather(
        runs.drive(fence, linear(nodes), group=group),
        runs.drive(other, linear(seven([])), group=group),
        return_exceptions=True,
    )
    assert isinstance(ends[0], Invalid)
    assert ends[1] is None
    assert await runs.rows("SELECT key FROM tasks WHERE run_id = $1 ORDER BY key", fence.run_id) == [("one",), ("two",)]
    assert await runs.rows("SELECT count(*) FROM checkpoints WHERE thread_id = $1", fence.run_id) == [(2,)]
    await runs.check_sequence(fence.run_id)
    await runs.drive(await runs.claim(fence.run_id), linear(seven([])), group=group)
    await _same_as_a_calm_one(runs, fence.run_id, seven([]))


def found(fingerprint: str) -> effect.Effect:
    return effect.record_finding(
        fingerprint, source="review", scanner="lead", rule="r", severity="HIGH", message="m", status="open"
    )


async def test_two_that_change_the_same_row_do_not_share_a_commit(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    def finds(line: int) -> Any:
        return lambda state: {"effects": [found("f") | {"line": line}]}

    nodes = seven([], two=finds(1), three=finds(2), four=finds(3))
    fence = await runs.leased()
    with caplog.at_level("INFO"):
        await runs.drive(fence, linear(nodes))
    assert "goes by itself" not in caplog.text
    assert await runs.rows("SELECT line FROM findings WHERE run_id = $1", fence.run_id) == [(3,)]
    await _same_as_a_calm_one(runs, fence.run_id, nodes)


async def test_a_run_whose_lease_is_gone_finds_out_whatever_waits(runs: Runs) -> None:
    began: list[str] = []
    fence = await runs.leased()

    async def loses(state: Any) -> Any:
        await runs.claim(fence.run_id)
        return task_of("three", began)(state)

    with pytest.raises(Exception, match="another owner"):
        await runs.drive(fence, linear(seven(began, three=loses)))
    kept = await runs.rows("SELECT count(*) FROM checkpoints WHERE thread_id = $1", fence.run_id)
    assert kept[0][0] <= len(NAMES[:2])
    assert await runs.rows("SELECT event_seq FROM project_runs WHERE id = $1", fence.run_id) == await runs.rows(
        "SELECT count(*) FROM events WHERE run_id = $1", fence.run_id
    )
