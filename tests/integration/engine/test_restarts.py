"""A database that is away for a moment costs a driven run a moment, whatever it was just asking."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy import select

from backend.adapters.db.tables import Question
from backend.operations import questions
from tests.integration.engine.conftest import Company
from tests.patience import PATIENCE


class Restarting:
    """The pool over a database that is just starting up whenever something is asked for the first time."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self.refused: list[str] = []

    def _ask(self, text: str) -> None:
        if text not in self.refused:
            self.refused.append(text)
            raise asyncpg.CannotConnectNowError("the database system is starting up")

    async def fetch(self, text: str, *args: Any) -> Any:
        self._ask(text)
        return await self._pool.fetch(text, *args)

    async def fetchrow(self, text: str, *args: Any) -> Any:
        self._ask(text)
        return await self._pool.fetchrow(text, *args)

    async def fetchval(self, text: str, *args: Any) -> Any:
        self._ask(text)
        return await self._pool.fetchval(text, *args)

    async def execute(self, text: str, *args: Any) -> Any:
        self._ask(text)
        return await self._pool.execute(text, *args)

    def acquire(self) -> Any:
        self._ask("a connection")
        return self._pool.acquire()


async def drive(company: Company, run_id: UUID, status: str) -> None:
    """As a worker and its reaper would: come again while the run is left to its lease."""
    async with asyncio.timeout(PATIENCE):
        while (await company.row(run_id))["status"] != status:
            try:
                await company.executor.execute(run_id)
            except asyncpg.CannotConnectNowError:
                await asyncio.sleep(0.2)


async def test_a_database_that_restarts_at_each_statement_in_turn_fails_no_run_and_pays_nothing_twice(
    company: Company,
) -> None:
    pool = Restarting(company.pool)
    company.executor = company.worker("restarted")
    company.executor.pool = pool
    company.executor.group.pool = pool
    run_id = await company.run("Ask a question.", retention={"checkpoints": "thin"})
    await drive(company, run_id, "WAITING")
    async with company.sessions() as session:
        question = await session.scalar(select(Question).where(Question.run_id == run_id))
    assert question is not None
    await company.operate(questions.answer, question.id, "blue", by="ada")
    await drive(company, run_id, "COMPLETED")
    met = " ".join(pool.refused)
    for part in ("model_calls", "checkpoint_writes", "channel_values", "a connection", "DELETE FROM checkpoint_writes"):
        assert part in met, f"nothing that asks for {part} met a restart"
    assert len(company.transport.calls) == 16
    await company.check(run_id)
