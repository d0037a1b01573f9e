"""An engine of one process over a real database, with a scripted transport in place of the network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from backend.adapters.db.engine import Sessions, transaction
from backend.agents.prompt import PromptSet
from backend.domain.config import RunConfig
from backend.domain.model import CallFailed, Choice, Exchange, ModelRequest, Position, Quote, Usage
from backend.engine.claiming import Claimed, claim
from backend.engine.executor import Executor
from backend.engine.leases import Heartbeat
from backend.engine.loader import Graphs
from backend.engine.prompts import Library
from backend.settings import EngineSettings
from tests.acceptance.graphs import CHAIN
from tests.integration.engine.interview import INTERVIEW
from tests.patience import PATIENCE

Script = Callable[[Position, int], Exchange | CallFailed]


def reply(text: str, *, tokens: tuple[int, int] = (100, 20), usd: str = "0.001") -> Exchange:
    return Exchange(text, (), "stop", Usage(*tokens), Decimal(usd), 0.01, "test-model", {})


class ScriptedTransport:
    """A transport: says the position back, or what the script says; counts what it was asked."""

    def __init__(self) -> None:
        self.calls: list[Position] = []
        self.script: Script = lambda position, count: reply(f"{position.node} {position.visit} {position.ordinal}")
        self.gate = asyncio.Event()
        self.gate.set()
        self.quoted = Quote(200, 100, Decimal("0.002"), "test")
        self.admitted = asyncio.Event()
        self.admitted.set()
        self.waiting = 0

    def quote(self, choice: Choice, request: ModelRequest, config: RunConfig) -> Quote:
        return self.quoted

    async def admit(self, choice: Choice, config: RunConfig, quote: Quote) -> None:
        self.waiting += 1
        await self.admitted.wait()

    async def send(
        self, choice: Choice, request: ModelRequest, position: Position, config: RunConfig, on_token: Any = None
    ) -> Exchange:
        self.calls.append(position)
        answer = self.script(position, self.calls.count(position))
        await self.gate.wait()
        if isinstance(answer, CallFailed):
            raise answer
        return answer


class RecordingBell:
    """A bell that a test can look at."""

    def __init__(self) -> None:
        self.rung: list[UUID] = []
        self.said: list[dict[str, Any]] = []

    async def say(self, run_id: UUID, words: bytes) -> bool:
        self.said.append(json.loads(words))
        return True

    def ring(self, run_id: UUID) -> None:
        self.rung.append(run_id)

    def wake(self, run_id: UUID) -> None:
        return None


class EmptyBench:
    workspace: Any = None
    checks: Any = None

    def toolbox(self, role: Any, tree: Any, note: Any) -> Any:
        raise NotImplementedError


async def empty_bench(facts: Any) -> Any:
    return EmptyBench()


def config(**changes: Any) -> RunConfig:
    base: dict[str, Any] = {
        "graph": "chain",
        "models": {"provider": "openai", "default": "test-model", "prices": {"test-model": {"input": 1, "output": 2}}},
    }
    return RunConfig.model_validate(base | changes)


class Company:
    """Everything a test of the engine needs."""

    def __init__(self, sessions: Sessions, pool: Any, make_run: Any, heartbeat: Heartbeat) -> None:
        self.sessions, self.pool, self.make_run = sessions, pool, make_run
        self.transport, self.bell, self.heartbeat = ScriptedTransport(), RecordingBell(), heartbeat
        self.settings = EngineSettings(lease_seconds=30, heartbeat_seconds=0.2, shutdown_seconds=0.5)
        self.executor = self.worker("one")

    def worker(self, name: str, prompts: PromptSet | None = None, **settings: Any) -> Executor:
        return Executor(
            sessions=self.sessions,
            pool=self.pool,
            bell=self.bell,
            transport=self.transport,
            graphs=Graphs([CHAIN, INTERVIEW]),
            library=Library(self.pool, prompts),
            workbenches=empty_bench,
            heartbeat=self.heartbeat,
            settings=self.settings.model_copy(update=settings),
            owner=f"test/{name}",
        )

    async def claim(self, run_id: UUID, library: Library | None = None, pool: Any = None) -> Claimed | None:
        """Take a run up and do nothing with it."""
        who: dict[str, Any] = {
            "owner": "test",
            "lease_seconds": 60.0,
            "max_claims": 5,
            "library": library or self.executor.library,
        }
        return await claim(self.sessions, pool or self.pool, self.bell, run_id, **who)

    async def run(self, brief: str = "Do it.", **changes: Any) -> UUID:
        async with self.sessions.begin() as session:
            run = await self.make_run(session, config=config(**changes), brief=brief)
            await session.execute(
                run.__table__.metadata.tables["projects"]
                .update()
                .where(run.__table__.metadata.tables["projects"].c.id == run.project_id)
                .values(active_run_id=run.id)
            )
        return run.id

    async def operate(self, operation: Callable[..., Any], *args: Any, **named: Any) -> Any:
        async with transaction(self.sessions, self.bell) as session:
            return await operation(session, *args, **named)

    async def row(self, run_id: UUID) -> Any:
        return await self.pool.fetchrow("SELECT * FROM project_runs WHERE id = $1", run_id)

    async def let_lease_end(self, run_id: UUID) -> None:
        """As if the run's worker had died long ago."""
        statement = "UPDATE project_runs SET lease_expires_at = clock_timestamp() WHERE id = $1"
        await self.pool.execute(statement, run_id)

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(PATIENCE):
            while True:
                found = condition()
                if await found if asyncio.iscoroutine(found) else found:
                    return
                await asyncio.sleep(0.02)

    async def waits_for_a_lock(self, statements: int = 1, *, unless: asyncio.Future[Any] | None = None) -> None:
        """Return when so many statements wait for somebody's lock, or what is awaited is done."""
        waiting = (
            "SELECT count(*) >= $1 FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )

        async def waits() -> bool:
            return bool((unless is not None and unless.done()) or await self.pool.fetchval(waiting, statements))

        await self.until(waits)

    async def story(self, run_id: UUID) -> list[tuple[Any, ...]]:
        """What a person reads of a run; the same whatever happened on the way."""
        rows = await self.pool.fetch(
            "SELECT 'task' AS kind, key AS a, status AS b FROM tasks WHERE run_id = $1"
            " UNION ALL SELECT 'comment', body, node || visit::text FROM task_comments WHERE run_id = $1"
            " UNION ALL SELECT 'run', status, coalesce(final_report::text, '') FROM project_runs WHERE id = $1"
            " UNION ALL SELECT 'spend', spent_usd::text, (spent_tokens_input + spent_tokens_output)::text"
            "   FROM project_runs WHERE id = $1"
            " UNION ALL SELECT 'call', node || visit::text || '/' || ordinal::text, response ->> 'content'"
            "   FROM model_calls WHERE run_id = $1 AND status = 'done'"
            " UNION ALL SELECT 'event', type, count(*)::text FROM events WHERE run_id = $1"
            "   AND type IN ('task.created', 'task.moved', 'comment.added', 'model.called', 'command.finished')"
            " GROUP BY type ORDER BY 1, 2, 3",
            run_id,
        )
        return [tuple(row) for row in rows]

    async def check(self, run_id: UUID) -> None:
        """The invariants that hold for every run at every end."""
        numbers = [
            row[0] for row in await self.pool.fetch("SELECT seq FROM events WHERE run_id = $1 ORDER BY 1", run_id)
        ]
        assert numbers == list(range(1, len(numbers) + 1))
        assert await self.pool.fetch("SELECT * FROM v_ledger_check WHERE run_id = $1", run_id) == []
        assert await self.pool.fetch("SELECT * FROM v_stuck_runs WHERE run_id = $1", run_id) == []
        row = await self.row(run_id)
        assert row["lease_owner"] is None
        assert row["reserved_tokens"] == 0


@pytest.fixture
async def company(sessions: Sessions, pool: Any, database_url: str, make_run: Any) -> AsyncIterator[Company]:
    heartbeat = Heartbeat(database_url, every=0.2, lease_seconds=30)
    heartbeat.start()
    yield Company(sessions, pool, make_run, heartbeat)
    heartbeat.stop()
