"""What an error becomes for whoever asked."""

from __future__ import annotations

import asyncpg
import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy.exc import TimeoutError as PoolTimeout

from backend.api import problems


@pytest.mark.parametrize(
    "error",
    [
        # The driver's own errors come through while SQLAlchemy sets a new connection up.
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
        asyncpg.InternalClientError("unexpected end of the stream"),
        PoolTimeout("no connection was free"),
        ConnectionRefusedError(),
        TimeoutError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_database_that_goes_away_at_any_moment_is_answered_with_503(error: Exception) -> None:
    app = FastAPI()
    problems.install(app)

    @app.get("/")
    async def ask() -> None:
        raise error

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
        answer = await client.get("/")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert answer.headers["Retry-After"] == "1"
