"""Connections of a pool whose server closed them are opened anew, without a question to the server each time."""

from __future__ import annotations

import asyncio

import asyncpg
from sqlalchemy import text

from backend.adapters.db.engine import connect, sessions_of
from backend.adapters.db.pool import plain_url


async def test_a_connection_that_the_server_closed_is_opened_anew(database_url: str) -> None:
    engine = connect(database_url, pool_size=2)
    sessions = sessions_of(engine)
    async with sessions() as one, sessions() as other:
        before = {(await session.execute(text("SELECT pg_backend_pid()"))).scalar_one() for session in (one, other)}
    admin = await asyncpg.connect(plain_url(database_url))
    for pid in before:
        await admin.execute("SELECT pg_terminate_backend($1)", pid)
    while await admin.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = ANY ($1)", list(before)):
        await asyncio.sleep(0.01)
    await admin.close()
    await asyncio.sleep(0.05)
    for _ in range(2):
        async with sessions() as session:
            assert (await session.execute(text("SELECT pg_backend_pid()"))).scalar_one() not in before
    await engine.dispose()
