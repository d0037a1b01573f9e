"""What the database refuses is told for what it is, whichever way it was asked."""

from __future__ import annotations

from uuid import UUID

import httpx
import pytest
from sqlalchemy import select, text

from backend.adapters.db.engine import Sessions
from backend.adapters.db.tables import ProjectRun
from tests.integration.api.conftest import Post, Quiet


async def test_a_database_of_another_release_is_named_as_what_it_is(
    client: httpx.AsyncClient, sessions: Sessions
) -> None:
    async with sessions.begin() as session:
        await session.execute(text("ALTER TABLE questions RENAME COLUMN due_at TO due"))
    answer = await client.get("/api/questions")
    assert (answer.status_code, answer.json()["code"]) == (503, "database_not_migrated")
    assert "company migrate" in answer.json()["detail"]


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "once"}], ids=["alone", "with-a-key"])
@pytest.mark.parametrize(
    ("state", "status", "code"),
    [
        ("40001", 503, "unavailable"),
        ("53300", 503, "unavailable"),
        ("42P01", 503, "database_not_migrated"),
        ("23514", 409, "conflict"),
        ("22001", 422, "invalid"),
        ("XX000", 500, "error"),
    ],
)
async def test_a_start_that_the_database_refuses_is_told_why_and_leaves_nothing(
    client: httpx.AsyncClient,
    new_project: Post,
    sessions: Sessions,
    bell: Quiet,
    headers: dict[str, str],
    state: str,
    status: int,
    code: str,
) -> None:
    project = await new_project()
    refuse = (
        "CREATE FUNCTION refuse_now() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE EXCEPTION 'not now' USING ERRCODE = '{state}'; END $$",
        "CREATE TRIGGER now_and_then BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION refuse_now()",
    )
    async with sessions.begin() as session:
        for statement in refuse:
            await session.execute(text(statement))
    path = f"/api/projects/{project['id']}/runs"
    refused = await client.post(path, json={}, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (status, code), refused.text
    assert "not now" not in refused.text
    assert bell.rung == []
    async with sessions.begin() as session:
        assert (await session.scalars(select(ProjectRun.id))).all() == []
        await session.execute(text("DROP TRIGGER now_and_then ON events"))
    began = await client.post(path, json={}, headers=headers)
    assert began.status_code == 201, began.text
    assert bell.rung == [UUID(began.json()["id"])]
