"""Projects over HTTP, and the conventions that hold for every group."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from sqlalchemy import delete, func, select

from backend.adapters.db.engine import Sessions
from backend.adapters.db.tables import IdempotencyKey, Project, ProjectRun
from tests.integration.api.conftest import Post, Quiet


async def test_a_project_is_made_read_edited_archived_and_deleted(client: httpx.AsyncClient, new_project: Post) -> None:
    made = await new_project(config={"budget": {"usd": "1.5"}})
    assert (made["status"], made["template_slug"], made["spent_usd"]) == ("READY", "standard", "0.000000")
    assert made["created_at"].endswith("Z")
    path = f"/api/projects/{made['id']}"
    read = await client.get(path)
    assert read.json() == made
    edited = await client.patch(path, json={"name": "Greeter 2"}, headers={"If-Match": read.headers["ETag"]})
    assert (edited.status_code, edited.json()["name"], edited.headers["ETag"]) == (200, "Greeter 2", '"2"')
    archived = await client.post(f"{path}/archive")
    assert archived.json()["status"] == "ARCHIVED"
    assert (await client.delete(path)).status_code == 204
    assert (await client.get(path)).status_code == 404


async def test_an_edit_without_or_with_an_old_etag_is_refused(client: httpx.AsyncClient, new_project: Post) -> None:
    path = f"/api/projects/{(await new_project())['id']}"
    assert (await client.patch(path, json={"name": "x"})).status_code == 428
    assert (await client.patch(path, json={"name": "x"}, headers={"If-Match": '"1"'})).status_code == 200
    late = await client.patch(path, json={"name": "y"}, headers={"If-Match": '"1"'})
    assert (late.status_code, late.json()["code"]) == (412, "version_conflict")


@pytest.mark.parametrize(
    ("brief", "says"),
    [
        ("", "empty"),
        ("  \n ", "empty"),
        ("a\x00b", "NUL"),
        ("x" * 200_001, "200,001 bytes"),
        ("\x01\x02\x03" * 50, "binary"),
    ],
)
async def test_a_brief_that_cannot_be_read_is_refused_with_a_sentence(
    client: httpx.AsyncClient, brief: str, says: str
) -> None:
    answer = await client.post("/api/projects", json={"name": "n", "brief": brief})
    assert answer.status_code == 422
    assert says in answer.json()["detail"]
    assert answer.json()["errors"][0]["pointer"] == "/brief"


async def test_a_megabyte_of_emoji_is_refused_and_less_is_kept(client: httpx.AsyncClient, new_project: Post) -> None:
    too_much = await client.post("/api/projects", json={"name": "n", "brief": "🚀" * 270_000})
    assert too_much.status_code == 413
    kept = "🚀" * 40_000
    made = await new_project(brief=kept)
    assert (await client.get(f"/api/projects/{made['id']}")).json()["brief"] == kept


async def test_errors_are_problems_with_pointers_and_the_request_id(client: httpx.AsyncClient) -> None:
    body = {"name": "n", "brief": "b", "config": {"budget": {"usd": -1}}, "nope": 1}
    answer = await client.post("/api/projects", json=body, headers={"X-Request-ID": "abc-1"})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["X-Request-ID"] == answer.json()["request_id"] == "abc-1"
    assert [fault["pointer"] for fault in answer.json()["errors"]] == ["/nope"]
    wrong = await client.post("/api/projects", json={key: body[key] for key in ("name", "brief", "config")})
    assert [fault["pointer"] for fault in wrong.json()["errors"]] == ["/config/budget/usd"]


async def test_what_is_not_there_is_a_problem_too(client: httpx.AsyncClient) -> None:
    for path in ("/api/nothing", "/api/projects/0199a1b2-0000-7000-8000-000000000001"):
        answer = await client.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert (await client.delete("/api/projects")).status_code == 405


async def test_pages_by_cursor_show_every_row_once(client: httpx.AsyncClient, new_project: Post) -> None:
    made = [(await new_project(name=f"p{index}"))["id"] for index in range(7)]
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = (await client.get("/api/projects", params={"limit": 3, **({"cursor": cursor} if cursor else {})})).json()
        seen += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == made[::-1]
    skipped = (await client.get("/api/projects", params={"limit": 2, "skip": 2, "count": True})).json()
    assert ([item["id"] for item in skipped["items"]], skipped["total"]) == (made[::-1][2:4], 7)


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=201", "limit=x", "cursor=!!!", "cursor=AAAA", "skip=-1", "skip=1&cursor=AAAA", "status=no"],
)
async def test_a_page_that_cannot_be_is_refused(client: httpx.AsyncClient, query: str) -> None:
    assert (await client.get(f"/api/projects?{query}")).status_code == 422


async def test_lists_filter_by_status_template_and_text(client: httpx.AsyncClient, new_project: Post) -> None:
    ledger = await new_project(name="Ledger 100%")
    await new_project(draft=True)

    async def found(**query: Any) -> list[str]:
        return [item["id"] for item in (await client.get("/api/projects", params=query)).json()["items"]]

    assert await found(status="READY") == [ledger["id"]]
    assert await found(text="100%") == [ledger["id"]]
    assert await found(template="lean") == []
    assert (await client.get("/api/projects?text=%00")).status_code == 422


async def test_fifty_equal_posts_at_once_make_one_row_and_one_answer(
    client: httpx.AsyncClient, sessions: Sessions
) -> None:
    async def post() -> httpx.Response:
        body = {"name": "n", "brief": "b"}
        return await client.post("/api/projects", json=body, headers={"Idempotency-Key": "one"})

    answers = await asyncio.gather(*(post() for _ in range(50)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert len({answer.headers["Location"] for answer in answers}) == 1
    async with sessions() as session:
        assert await session.scalar(select(func.count()).select_from(Project)) == 1


async def test_a_key_belongs_to_one_request(client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "one"}
    assert (await client.post("/api/projects", json={"name": "n", "brief": "b"}, headers=headers)).status_code == 201
    other = await client.post("/api/projects", json={"name": "m", "brief": "b"}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")


async def test_a_refused_request_leaves_its_key_free(client: httpx.AsyncClient, new_project: Post) -> None:
    headers = {"Idempotency-Key": "one"}
    assert (await client.post("/api/projects", json={"name": "n", "brief": ""}, headers=headers)).status_code == 422
    assert (await client.post("/api/projects", json={"name": "n", "brief": "b"}, headers=headers)).status_code == 201


async def test_starting_a_run_rings_once_after_the_commit(
    client: httpx.AsyncClient, new_project: Post, bell: Quiet, sessions: Sessions
) -> None:
    project = await new_project()
    path = f"/api/projects/{project['id']}/runs"
    first = await client.post(path, json={}, headers={"X-Request-ID": "req-7", "X-Actor": "ada"})
    assert first.status_code == 201
    run = first.json()
    assert (run["status"], run["limit_tokens"], run["correlation_id"], run["started_by"]) == (
        "QUEUED",
        100_000,
        "req-7",
        "ada",
    )
    assert [str(run_id) for run_id in bell.rung] == [run["id"]]
    assert (await client.post(path, json={})).status_code == 409
    assert (await client.delete(f"/api/projects/{project['id']}")).status_code == 409
    assert len(bell.rung) == 1
    async with sessions() as session:
        assert await session.scalar(select(func.count()).select_from(ProjectRun)) == 1


async def test_a_run_keeps_the_key_of_its_start_when_the_answer_is_forgotten(
    client: httpx.AsyncClient, new_project: Post, sessions: Sessions
) -> None:
    path, headers = f"/api/projects/{(await new_project())['id']}/runs", {"Idempotency-Key": "build-41"}
    first = await client.post(path, json={}, headers=headers)
    async with sessions() as session, session.begin():
        await session.execute(delete(IdempotencyKey))
    again = await client.post(path, json={}, headers=headers)
    assert (again.status_code, again.json()["id"]) == (201, first.json()["id"])
    async with sessions() as session:
        assert [*await session.scalars(select(ProjectRun.idempotency_key))] == ["build-41"]


async def test_deleting_a_project_removes_its_files(client: httpx.AsyncClient, new_run: Post, settings: Any) -> None:
    run = await new_run()
    await client.post(f"/api/runs/{run['id']}/stop")
    repository = settings.home / "repositories" / f"{run['project_id']}.git"
    worktree = settings.home / "worktrees" / run["id"]
    for folder in (repository, worktree):
        folder.mkdir(parents=True)
    assert (await client.delete(f"/api/projects/{run['project_id']}")).status_code == 204
    assert not repository.exists()
    assert not worktree.exists()
