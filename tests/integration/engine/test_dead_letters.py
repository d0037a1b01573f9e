"""Dead letters: a run that used up its claims is put away with its reason, and done again when somebody asks."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest
from sqlalchemy import select

from backend.adapters.db.tables import DeadLetter
from backend.errors import NotFound
from backend.operations import dead_letters, pages
from tests.integration.engine.conftest import Company


async def _bury(company: Company) -> tuple[UUID, UUID]:
    """A run whose workers died each time; returns it and its letter."""
    run_id = await company.run()
    await company.pool.execute(
        "UPDATE project_runs SET status = 'RUNNING', started_at = now(), claims = 5, lease_epoch = 5,"
        " lease_expires_at = now() WHERE id = $1",
        run_id,
    )
    await company.pool.execute("UPDATE projects SET status = 'RUNNING'")
    await company.executor.execute(run_id)
    async with company.sessions() as session:
        letter = (await session.scalars(select(DeadLetter).where(DeadLetter.run_id == run_id))).one()
    return run_id, letter.id


async def test_a_replayed_dead_letter_brings_its_run_to_the_end(company: Company) -> None:
    run_id, letter_id = await _bury(company)
    await company.operate(dead_letters.replay, letter_id, by="ada")
    row = await company.row(run_id)
    assert (row["status"], row["claims"]) == ("QUEUED", 0)
    await company.executor.execute(run_id)
    assert (await company.row(run_id))["status"] == "COMPLETED"
    told = await company.pool.fetch(
        "SELECT payload ->> 'dead_letter' FROM events WHERE run_id = $1 AND type = 'run.retry_requested'", run_id
    )
    assert [row[0] for row in told] == [str(letter_id)]
    await company.check(run_id)


async def test_a_dead_letter_that_is_replayed_ten_times_at_once_is_replayed_once(company: Company) -> None:
    run_id, letter_id = await _bury(company)
    await asyncio.gather(*(company.operate(dead_letters.replay, letter_id, by="ada") for _ in range(10)))
    count = "SELECT count(*) FROM events WHERE run_id = $1 AND type = 'run.retry_requested'"
    assert await company.pool.fetchval(count, run_id) == 1
    await company.executor.execute(run_id)
    await company.operate(dead_letters.replay, letter_id, by="ada")
    assert (await company.row(run_id))["status"] == "COMPLETED"


async def test_dead_letters_are_listed_by_whether_they_wait(company: Company) -> None:
    _, letter_id = await _bury(company)

    async def count(replayed: bool | None) -> int:
        async with company.sessions() as session:
            return len((await dead_letters.page(session, pages.PageRequest(), replayed=replayed)).items)

    assert [await count(waits) for waits in (None, False, True)] == [1, 1, 0]
    await company.operate(dead_letters.replay, letter_id, by="ada")
    assert [await count(waits) for waits in (None, False, True)] == [1, 0, 1]


async def test_the_dead_letter_of_another_tenant_is_not_there(company: Company) -> None:
    _, letter_id = await _bury(company)
    with pytest.raises(NotFound):
        await company.operate(dead_letters.replay, letter_id, by="eve", tenant_id=UUID(int=7))
