"""What the saver promises beyond LangGraph's contract: effects exactly once, a fence, a head that no clock moves."""

from __future__ import annotations

from typing import Any, ClassVar

import asyncpg
import pytest
from langgraph.graph import StateGraph

from backend.adapters.db.checkpointer import LeaseLost
from backend.errors import Invalid
from tests.conformance.conftest import Runs, build, decide, plan, work


async def test_a_run_commits_its_rows_with_its_checkpoints(runs: Runs) -> None:
    fence = await runs.leased()
    await runs.drive(fence, build())
    assert await runs.story(fence.run_id) == [
        ("comment", "Three tasks.", "plan"),
        ("comment", "a is done.", "work"),
        ("comment", "b is done.", "work"),
        ("comment", "c is done.", "work"),
        ("comment.added", "4", ""),
        ("run", "COMPLETED", '{"done": ["a", "b", "c"]}'),
        ("run.completed", "1", ""),
        ("task", "a", "DONE"),
        ("task", "b", "DONE"),
        ("task", "c", "DONE"),
        ("task.created", "3", ""),
        ("task.moved", "9", ""),
    ]
    await runs.check_sequence(fence.run_id)
    ended = await runs.rows("SELECT progress, claims, current_node, ended_at IS NOT NULL FROM project_runs")
    assert ended == [(100, 0, "decide", True)]
    assert await runs.rows("SELECT status, active_run_id FROM projects") == [("COMPLETED", None)]


async def test_no_checkpoint_stores_effects(runs: Runs) -> None:
    fence = await runs.leased()
    await runs.drive(fence, build())
    stored = await runs.rows("SELECT channel_values FROM checkpoints UNION ALL SELECT value FROM checkpoint_writes")
    assert stored
    assert not [text for (text,) in stored if "Three tasks" in text or "create_task" in text]


async def test_a_parallel_task_that_is_done_does_not_run_again_after_a_crash(runs: Runs) -> None:
    fence = await runs.leased()
    ran: list[str] = []

    def crash_on_c(state: Any) -> Any:
        ran.append(state["part"])
        if state["part"] == "c" and ran.count("c") == 1:
            raise RuntimeError("the worker died here")
        return work(state)

    with pytest.raises(RuntimeError):
        await runs.drive(fence, build(work=crash_on_c))
    await runs.drive(await runs.claim(fence.run_id), build(work=crash_on_c))
    whole = await runs.leased_twin(build())
    assert await runs.story(fence.run_id) == await runs.story(whole.run_id)
    assert ran.count("a") == ran.count("b") == 1
    await runs.check_sequence(fence.run_id)


async def test_a_worker_that_lost_its_lease_writes_nothing(runs: Runs) -> None:
    fence = await runs.leased()

    async def loses(state: Any) -> Any:
        await runs.claim(fence.run_id)
        return work(state)

    with pytest.raises(LeaseLost):
        await runs.drive(fence, build(work=loses))
    assert await runs.rows("SELECT DISTINCT status FROM tasks") == [("CREATED",)]
    assert await runs.rows("SELECT count(*) FROM checkpoints") == [(1,)]


class Forgetful(asyncpg.Connection):  # type: ignore[misc]  # asyncpg ships no types
    """A connection that breaks after each new write has been committed, before anybody hears of it."""

    lost: ClassVar[set[str]] = set()

    async def fetch(self, query: str, *args: Any, **options: Any) -> Any:
        return self._lose(query, args, await super().fetch(query, *args, **options))

    async def fetchrow(self, query: str, *args: Any, **options: Any) -> Any:
        return self._lose(query, args, await super().fetchrow(query, *args, **options))

    def _lose(self, query: str, args: tuple[Any, ...], found: Any) -> Any:
        if query.startswith("WITH") and repr(args) not in self.lost:
            self.lost.add(repr(args))
            raise ConnectionResetError("the reply was lost")
        return found


async def test_a_commit_whose_reply_was_lost_is_not_made_twice(runs: Runs, database_url: str) -> None:
    async with asyncpg.create_pool(database_url, connection_class=Forgetful, min_size=1, max_size=4) as pool:
        forgetful = Runs(runs.sessions, pool, runs.make_run, ahead=runs.ahead)
        fence = await forgetful.leased()
        await forgetful.drive(fence, build())
    assert len(Forgetful.lost) >= 5
    whole = await runs.leased_twin(build())
    assert await runs.story(fence.run_id) == await runs.story(whole.run_id)
    await runs.check_sequence(fence.run_id)


async def test_a_finished_node_says_which_nodes_start(runs: Runs) -> None:
    fence = await runs.leased()
    await runs.drive(fence, build())
    told = await runs.rows(
        "SELECT payload ->> 'node', payload -> 'next' FROM events WHERE run_id = $1 AND type = 'node.finished'"
        " ORDER BY seq",
        fence.run_id,
    )
    assert told[0] == ("plan", '["work", "work", "work"]')
    assert [following for node, following in told if node == "work" and following] == ['["decide"]']
    assert told[-1] == ("decide", None)


async def test_every_durability_but_sync_is_refused(runs: Runs) -> None:
    fence = await runs.leased()
    saver = runs.saver(fence)
    config = {"configurable": {"thread_id": str(fence.run_id)}}
    for durability in ("async", "exit", None):
        with pytest.raises(Invalid, match="sync"):
            await build().compile(checkpointer=saver).ainvoke({"plan": {}}, config, durability=durability)
    assert await runs.rows("SELECT count(*) FROM tasks") == [(0,)]


async def test_the_head_is_what_was_written_last_whatever_the_clocks_say(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    import langgraph.checkpoint.base.id as ids

    fence = await runs.leased()
    real = ids.time.time_ns

    def back_in_time(state: Any) -> Any:
        shifted = type("Clock", (), {"time_ns": staticmethod(lambda: real() - 3_600_000_000_000)})
        monkeypatch.setattr(ids, "time", shifted)
        monkeypatch.setattr(ids, "_last_v6_timestamp", None)
        return plan(state)

    def fail(state: Any) -> Any:
        raise RuntimeError("crash")

    with pytest.raises(RuntimeError):
        await runs.drive(fence, build(plan=back_in_time, decide=fail))
    stored = await runs.rows("SELECT checkpoint_id::text FROM checkpoints ORDER BY number")
    found = await runs.saver(fence).aget_tuple({"configurable": {"thread_id": str(fence.run_id)}})
    assert found is not None
    assert found.checkpoint["id"] == stored[-1][0]
    await runs.drive(await runs.claim(fence.run_id), build())
    whole = await runs.leased_twin(build())
    assert await runs.story(fence.run_id) == await runs.story(whole.run_id)


async def test_state_that_is_not_json_is_an_error_that_names_the_channel(runs: Runs) -> None:
    fence = await runs.leased()

    def stores_a_set(state: Any) -> Any:
        return {"plan": {"tasks": {"a", "b"}}}

    with pytest.raises(Invalid, match="plan/tasks holds a builtins.set"):
        await runs.drive(fence, build(plan=stores_a_set))
    assert await runs.rows("SELECT count(*) FROM checkpoints") == [(0,)]


async def test_effects_the_database_refuses_leave_nothing_behind(runs: Runs) -> None:
    fence = await runs.leased()

    def comments_on_nothing(state: Any) -> Any:
        update = plan(state)
        update["effects"].append({**update["effects"][-2], "task": "nobody"})
        return update

    with pytest.raises(Invalid, match="refused"):
        await runs.drive(fence, build(plan=comments_on_nothing))
    assert await runs.rows("SELECT count(*) FROM tasks") == [(0,)]
    assert await runs.rows("SELECT count(*) FROM events") == [(0,)]


async def test_a_subgraph_commits_its_effects_once(runs: Runs) -> None:
    inner: StateGraph[Any] = build().compile()
    from langgraph.graph import END, START

    from tests.conformance.conftest import State

    outer = StateGraph(State)
    outer.add_node("team", inner)
    outer.add_edge(START, "team")
    outer.add_edge("team", END)
    fence = await runs.leased()
    await runs.drive(fence, outer)
    whole = await runs.leased_twin(build())
    assert await runs.story(fence.run_id) == await runs.story(whole.run_id)
    namespaces = await runs.rows("SELECT DISTINCT namespace <> '' FROM checkpoints ORDER BY 1")
    assert namespaces == [(False,), (True,)]


async def test_text_that_postgres_cannot_keep_is_mended_in_rows_and_kept_in_state(runs: Runs) -> None:
    fence = await runs.leased()

    def hostile(state: Any) -> Any:
        update = plan(state)
        update["plan"]["said"] = "nul \x00 half \ud800 big " + str(2**70)
        update["plan"]["big"] = 2**70
        update["effects"][3]["body"] = "nul \x00 half \ud800"
        return update

    seen: list[Any] = []

    def look(state: Any) -> Any:
        seen.append(state["plan"])
        return decide(state)

    def fail(state: Any) -> Any:
        raise RuntimeError("crash")

    with pytest.raises(RuntimeError):
        await runs.drive(fence, build(plan=hostile, decide=fail))
    await runs.drive(await runs.claim(fence.run_id), build(decide=look))
    assert seen[0]["said"] == "nul \x00 half \ud800 big " + str(2**70)
    assert seen[0]["big"] == 2**70
    assert ("comment", "nul \ufffd half \ufffd", "plan") in await runs.story(fence.run_id)
