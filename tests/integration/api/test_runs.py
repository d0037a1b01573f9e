"""Runs, tasks, comments, questions, findings and artifacts over HTTP."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import select, text

from backend.adapters.db.checkpoint_tables import Checkpoint
from backend.adapters.db.engine import Sessions
from backend.adapters.db.tables import Artifact, DeadLetter, Finding, ModelCall, ProjectRun, Question, Task
from backend.api import artifacts, comments, findings, projects, questions, runs, tasks
from backend.domain.ids import task_id
from backend.operations import events as log
from tests.integration.api.conftest import Post, Quiet


async def add(sessions: Sessions, row: Any) -> str:
    async with sessions.begin() as session:
        session.add(row)
        await session.flush()
        return str(row.id)


async def move(sessions: Sessions, run: Any, *statuses: str) -> None:
    for status in statuses:
        async with sessions.begin() as session:
            (await session.get_one(ProjectRun, UUID(run["id"]))).status = status


async def test_a_run_is_paused_resumed_stopped_and_retried(
    client: httpx.AsyncClient, new_run: Post, sessions: Sessions
) -> None:
    run = await new_run()
    path = f"/api/runs/{run['id']}"
    assert (await client.post(f"{path}/pause")).json()["requested"] == "pause"
    at_once = (await client.post(f"{path}/pause", json={"at_once": True})).json()
    assert (at_once["requested"], at_once["pause_at_once"]) == ("pause", True)
    assert (await client.post(f"{path}/pause", json={"at_once": "soon"})).status_code == 422
    assert (await client.post(f"{path}/resume")).json()["requested"] == "none"
    assert (await client.post(f"{path}/stop")).json()["status"] == "STOPPED_USER"
    assert (await client.post(f"{path}/pause")).status_code == 409
    retried = await client.post(f"{path}/retry", json={"budget": {"tokens": 200_000}})
    assert (retried.json()["status"], retried.json()["limit_tokens"]) == ("QUEUED", 200_000)
    assert (await client.post(f"{path}/retry")).status_code == 409
    types = [entry["what"] for entry in (await client.get(f"{path}/timeline")).json()]
    assert types == [
        "run.created",
        "run.pause_requested",
        "run.pause_requested",
        "run.resume_requested",
        "run.stopped_user",
        "run.retry_requested",
    ]


async def test_a_run_that_begins_is_shown_as_whoever_asks_for_it_sees_it(
    client: httpx.AsyncClient, new_project: Post, sessions: Sessions
) -> None:
    project = await new_project()
    began = await client.post(
        f"/api/projects/{project['id']}/runs", json={"config": {"budget": {"usd": "1.5"}}}, headers={"X-Actor": "ada"}
    )
    seen = await client.get(began.headers["Location"])
    assert (began.json(), began.headers["ETag"]) == (seen.json(), seen.headers["ETag"])
    async with sessions() as session:
        (event,) = await log.timeline(session, UUID(seen.json()["id"]))
    told = {"number": 1, "graph": seen.json()["graph"], "template": seen.json()["template_slug"], "by": "ada"}
    assert (event.type, event.seq, event.payload, event.instance) == ("run.created", 1, told, log.instance())
    assert event.correlation_id == seen.json()["correlation_id"] != ""


async def test_runs_are_listed_by_project_status_and_time(client: httpx.AsyncClient, new_run: Post) -> None:
    first, second = await new_run(), await new_run()
    await client.post(f"/api/runs/{first['id']}/stop")

    async def found(**query: Any) -> list[str]:
        answer = await client.get("/api/runs", params=query)
        assert answer.status_code == 200, answer.text
        return [item["id"] for item in answer.json()["items"]]

    assert await found() == [second["id"], first["id"]]
    assert await found(status="STOPPED_USER") == [first["id"]]
    assert await found(project_id=second["project_id"]) == [second["id"]]
    assert await found(since=second["created_at"]) == [second["id"]]
    assert await found(since="2999-01-01T00:00:00Z") == []


async def test_two_hundred_control_calls_at_once_are_answered_and_keep_the_log_whole(
    client: httpx.AsyncClient, new_run: Post, sessions: Sessions
) -> None:
    run = await new_run()
    choose = random.Random(7)

    async def call() -> int:
        verb = choose.choice(["pause", "resume", "stop", "retry"])
        return (await client.post(f"/api/runs/{run['id']}/{verb}")).status_code

    codes = await asyncio.gather(*(call() for _ in range(200)))
    assert set(codes) <= {200, 409}
    async with sessions() as session:
        row = await session.get_one(ProjectRun, UUID(run["id"]))
        entries = await log.timeline(session, row.id)
        assert [entry.seq for entry in entries] == list(range(1, row.event_seq + 1))


async def test_what_it_cost_is_shown_from_every_side(
    client: httpx.AsyncClient, new_run: Post, sessions: Sessions
) -> None:
    run = await new_run()
    for ordinal, role in ((1, "pm"), (2, "lead")):
        call = ModelCall(
            run_id=UUID(run["id"]), node="dev_work", visit=1, ordinal=ordinal, attempt=1, role=role, provider="openai",
            model="gpt-4o", status="done", request_hash="0", request={}, reserved_tokens=0, reserved_usd=Decimal(0),
            tokens_input=100, tokens_output=20, cost_usd=Decimal("0.5"), lease_epoch=1, response={},
            settled_at=datetime.now(UTC),
        )  # fmt: skip
        await add(sessions, call)
    cost = (await client.get(f"/api/runs/{run['id']}/cost")).json()
    assert [line["role"] for line in cost["by_role"]] == ["lead", "pm"]
    assert cost["by_node"] == [
        {
            "node": "dev_work",
            "calls": 2,
            "tokens_input": 200,
            "tokens_output": 40,
            "tokens_cached": 0,
            "cost_usd": "1.000000",
            "seconds": "0.000000",
        }
    ]
    assert cost["limits"]["tokens"] == 100_000


async def test_people_add_tasks_and_move_only_their_own(
    client: httpx.AsyncClient, new_run: Post, sessions: Sessions
) -> None:
    run = await new_run()
    run_id = UUID(run["id"])
    await add(
        sessions,
        Task(id=task_id(run_id, "T-1"), run_id=run_id, key="T-1", title="t", kind="feature", assigned_role="developer"),
    )
    body = {"run_id": run["id"], "title": "Look at the names", "depends_on": ["T-1"], "parent": "T-1"}
    made = await client.post("/api/tasks", json=body)
    assert (made.status_code, made.json()["key"], made.json()["depends_on"]) == (201, "H-1", ["T-1"])
    mine = f"/api/tasks/{made.json()['id']}"
    moved = await client.patch(mine, json={"status": "READY"}, headers={"If-Match": made.headers["ETag"]})
    assert (moved.status_code, moved.json()["status"]) == (200, "READY")
    jumped = await client.patch(mine, json={"status": "DONE"}, headers={"If-Match": moved.headers["ETag"]})
    assert jumped.status_code == 409
    theirs = await client.patch(
        f"/api/tasks/{task_id(run_id, 'T-1')}", json={"status": "READY"}, headers={"If-Match": '"1"'}
    )
    assert (theirs.status_code, "graph" in theirs.json()["detail"]) == (409, True)
    tree = (await client.get("/api/tasks/tree", params={"run_id": run["id"]})).json()
    assert [(task["key"], [child["key"] for child in task["children"]]) for task in tree] == [("T-1", ["H-1"])]
    unknown = await client.post("/api/tasks", json=body | {"depends_on": ["T-9"]})
    assert (unknown.status_code, unknown.json()["errors"][0]["pointer"]) == (422, "/depends_on/0")


async def test_comments_make_threads(client: httpx.AsyncClient, new_run: Post) -> None:
    run, other = await new_run(), await new_run()
    first = (await client.post("/api/comments", json={"run_id": run["id"], "body": "Why two CLIs?"})).json()
    reply = await client.post("/api/comments", json={"parent_comment_id": first["id"], "body": "A slip."})
    assert reply.status_code == 201
    second = (
        await client.post("/api/comments", json={"parent_comment_id": reply.json()["id"], "body": "Good."})
    ).json()
    for comment in (first, second):
        thread = (await client.get(f"/api/comments/{comment['id']}/thread")).json()
        assert [entry["body"] for entry in thread] == ["Why two CLIs?", "A slip.", "Good."]
    mixed = {"run_id": other["id"], "parent_comment_id": first["id"], "body": "x"}
    assert (await client.post("/api/comments", json=mixed)).status_code == 422
    assert (await client.post("/api/comments", json={"body": "about nothing"})).status_code == 422


async def test_a_question_is_answered_once_and_its_run_goes_on(
    client: httpx.AsyncClient, new_run: Post, sessions: Sessions, bell: Quiet
) -> None:
    run = await new_run()
    await move(sessions, run, "RUNNING", "WAITING")
    values = {"run_id": UUID(run["id"]), "kind": "approval", "asked_by": "pm", "text": "Shall we?"}
    ids = [
        await add(sessions, Question(**values, key=key, options=["approve", "reject"])) for key in ("plan", "release")
    ]
    assert (await client.post(f"/api/questions/{ids[0]}/answer", json={"answer": "maybe"})).status_code == 422
    answers = await asyncio.gather(
        *(client.post(f"/api/questions/{ids[0]}/answer", json={"answer": "Approve"}) for _ in range(10))
    )
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 9
    assert (await client.get(f"/api/runs/{run['id']}")).json()["status"] == "WAITING"
    last = await client.post(f"/api/questions/{ids[1]}/answer", json={"answer": "reject"}, headers={"X-Actor": "ada"})
    assert (last.json()["status"], last.json()["answer"], last.json()["answered_by"]) == ("ANSWERED", "reject", "ada")
    assert (await client.get(f"/api/runs/{run['id']}")).json()["status"] == "QUEUED"
    assert str(bell.rung[-1]) == run["id"]


@pytest.mark.parametrize(
    ("answer", "code", "limit", "status"),
    [
        ("1.50 usd", 200, "2.500000", "QUEUED"),
        ("+2 USD", 200, "3.000000", "QUEUED"),
        ("stop", 200, "1.000000", "STOPPED_USER"),
        ("20000 tokens", 422, "1.000000", "PAUSED"),
        ("a lot", 422, "1.000000", "PAUSED"),
        ("-1 usd", 422, "1.000000", "PAUSED"),
        ("0 usd", 422, "1.000000", "PAUSED"),
        ("9999999999999 usd", 422, "1.000000", "PAUSED"),
    ],
)
async def test_the_answer_to_a_budget_question_raises_the_limit(
    client: httpx.AsyncClient, new_run: Post, sessions: Sessions, answer: str, code: int, limit: str, status: str
) -> None:
    run = await new_run(budget={"usd": "1", "tokens": None})
    await move(sessions, run, "RUNNING", "PAUSED")
    question = Question(run_id=UUID(run["id"]), key="b", kind="budget", asked_by="engine", text="More?")
    path = f"/api/questions/{await add(sessions, question)}/answer"
    assert (await client.post(f"/api/runs/{run['id']}/resume")).status_code == 409
    assert (await client.post(path, json={"answer": answer})).status_code == code
    after = (await client.get(f"/api/runs/{run['id']}")).json()
    assert (after["limit_usd"], after["status"]) == (limit, status)


async def test_a_finding_is_waived_by_name_with_a_reason_and_until_a_date(
    client: httpx.AsyncClient, new_run: Post, sessions: Sessions
) -> None:
    run = await new_run()
    finding = Finding(
        run_id=UUID(run["id"]), source="security", scanner="bandit", rule="B105", severity="HIGH", message="secret",
        fingerprint="f",
    )  # fmt: skip
    path = f"/api/findings/{await add(sessions, finding)}/waive"
    past = {"by": "ada", "reason": "test vector", "until": "2020-01-01T00:00:00Z"}
    assert (await client.post(path, json=past)).status_code == 422
    assert (await client.post(path, json=past | {"by": "", "until": "2999-01-01T00:00:00Z"})).status_code == 422
    waived = await client.post(path, json=past | {"until": "2999-01-01T00:00:00Z"})
    assert (waived.json()["status"], waived.json()["waived_until"]) == ("waived", "2999-01-01T00:00:00.000000Z")
    listed = (await client.get("/api/findings", params={"run_id": run["id"], "status": "waived"})).json()
    assert [item["rule"] for item in listed["items"]] == ["B105"]


async def test_an_artifact_is_downloaded_from_the_store(
    client: httpx.AsyncClient, new_run: Post, sessions: Sessions, settings: Any
) -> None:
    run = await new_run()
    name = "ab" + "0" * 62
    path = settings.home / "artifacts" / "ab" / name
    artifact = Artifact(
        run_id=UUID(run["id"]),
        kind="report",
        path="out/report ü.json",
        media_type="application/json",
        size=2,
        sha256=name,
    )
    where = f"/api/artifacts/{await add(sessions, artifact)}/download"
    assert (await client.get(where)).status_code == 404
    path.parent.mkdir(parents=True)
    path.write_bytes(b"{}")
    answer = await client.get(where)
    assert (answer.content, answer.headers["X-Content-Type-Options"]) == (b"{}", "nosniff")
    assert answer.headers["Content-Disposition"].startswith("attachment;")


async def test_the_rows_that_are_shown_fit_the_documented_models(
    client: httpx.AsyncClient, new_run: Post, sessions: Sessions
) -> None:
    run = await new_run()
    run_id = UUID(run["id"])
    people_task = {"run_id": run["id"], "title": "t"}
    task = (await client.post("/api/tasks", json=people_task)).json()
    comment = (await client.post("/api/comments", json={"task_id": task["id"], "body": "b"})).json()
    question = await add(sessions, Question(run_id=run_id, key="k", kind="approval", asked_by="pm", text="?"))
    finding = await add(
        sessions,
        Finding(run_id=run_id, source="qa", scanner="s", rule="r", severity="LOW", message="m", fingerprint="f"),
    )
    artifact = await add(
        sessions, Artifact(run_id=run_id, kind="k", path="p", media_type="text/plain", size=1, sha256="s")
    )
    shown: list[tuple[str, Any]] = [
        (f"/api/projects/{run['project_id']}", projects.ProjectView),
        (f"/api/runs/{run['id']}", runs.RunView),
        (f"/api/tasks/{task['id']}", tasks.TaskView),
        (f"/api/comments/{comment['id']}", comments.CommentView),
        (f"/api/questions/{question}", questions.QuestionView),
        (f"/api/findings/{finding}", findings.FindingView),
        (f"/api/artifacts/{artifact}", artifacts.ArtifactView),
    ]
    for path, model in shown:
        row = (await client.get(path)).json()
        assert model.model_validate(row).model_fields_set == set(row)
    listed: list[tuple[str, Any]] = [
        ("projects", projects.ProjectListed),
        ("runs", runs.RunListed),
        ("tasks", tasks.TaskListed),
    ]
    for group, model in listed:
        for item in (await client.get(f"/api/{group}")).json()["items"]:
            model.model_validate(item)


async def test_a_run_shows_what_it_is_pinned_to_and_lists_leave_it_out(
    client: httpx.AsyncClient, new_run: Post, sessions: Sessions
) -> None:
    run = await new_run()
    assert (run["graph_version"], run["prompts"]) == ("1", None)
    async with sessions.begin() as session:
        (await session.get_one(ProjectRun, UUID(run["id"]))).prompts = {"qa": "0" * 64}
    assert (await client.get(f"/api/runs/{run['id']}")).json()["prompts"] == {"qa": "0" * 64}
    (listed,) = (await client.get("/api/runs")).json()["items"]
    assert "prompts" not in listed


async def test_what_belongs_to_another_tenant_is_not_there(
    client: httpx.AsyncClient, new_run: Post, sessions: Sessions, app: FastAPI
) -> None:
    """Every route with an id answers 404 for rows of another tenant; the routes are those of the OpenAPI schema."""
    run = await new_run()
    task = (await client.post("/api/tasks", json={"run_id": run["id"], "title": "t"})).json()
    comment = (await client.post("/api/comments", json={"run_id": run["id"], "body": "b"})).json()
    question = await add(sessions, Question(run_id=UUID(run["id"]), key="k", kind="approval", asked_by="pm", text="?"))
    finding = await add(
        sessions,
        Finding(
            run_id=UUID(run["id"]), source="qa", scanner="s", rule="r", severity="LOW", message="m", fingerprint="f"
        ),
    )
    artifact = await add(
        sessions, Artifact(run_id=UUID(run["id"]), kind="k", path="p", media_type="text/plain", size=1, sha256="s")
    )
    letter = await add(sessions, DeadLetter(run_id=UUID(run["id"]), kind="run", error="It died."))
    ids = {
        "project_id": run["project_id"], "run_id": run["id"], "task_id": task["id"], "comment_id": comment["id"],
        "question_id": question, "finding_id": finding, "artifact_id": artifact, "letter_id": letter,
        "other_id": run["id"], "slug": "standard", "version": "1",
    }  # fmt: skip
    stranger = uuid4()
    async with sessions.begin() as session:
        await session.execute(text("INSERT INTO tenants (id, name) VALUES (:id, 'other')"), {"id": stranger})
        for table in ("projects", "project_runs", "tasks", "questions", "findings", "artifacts", "dead_letters"):
            await session.execute(text(f"UPDATE {table} SET tenant_id = :id"), {"id": stranger})
        await session.execute(text("ALTER TABLE task_comments DISABLE TRIGGER USER"))
        await session.execute(text("UPDATE task_comments SET tenant_id = :id"), {"id": stranger})
    asked = 0
    for path, operations in app.openapi()["paths"].items():
        if "{" not in path or "templates" in path or path.endswith("/events"):
            continue
        for method in operations:
            answer = await client.request(
                method,
                path.format(**ids),
                json={"answer": "a", "by": "b", "reason": "r", "until": "2999-01-01T00:00:00Z"}
                if path.endswith(("answer", "waive"))
                else {}
                if method in {"post", "patch", "put"} and not path.endswith(("pause", "resume", "stop", "archive"))
                else None,
                headers={"If-Match": '"1"'},
            )
            wrong_body = path.endswith(("answer", "waive")) and answer.status_code == 422
            if wrong_body:
                only = (
                    {"answer": "a"}
                    if path.endswith("answer")
                    else {"by": "b", "reason": "r", "until": "2999-01-01T00:00:00Z"}
                )
                answer = await client.request(method, path.format(**ids), json=only)
            assert answer.status_code == 404, (method, path, answer.status_code, answer.text)
            asked += 1
    assert asked > 25
    for group in ("projects", "runs", "tasks", "comments", "questions", "findings", "artifacts"):
        assert (await client.get(f"/api/{group}")).json()["items"] == []
    async with sessions() as session:
        assert (await session.scalars(select(ProjectRun.requested))).all() == ["none"]


async def test_a_fork_with_the_same_key_is_one_run_and_another_waits_for_it(
    client: httpx.AsyncClient, new_run: Post, sessions: Sessions
) -> None:
    run = await new_run()
    path = f"/api/runs/{run['id']}"
    assert (await client.post(f"{path}/fork")).status_code == 409
    await client.post(f"{path}/stop")
    kept = uuid4()
    async with sessions.begin() as session:
        session.add(
            Checkpoint(
                thread_id=UUID(run["id"]),
                namespace="",
                number=1,
                checkpoint_id=kept,
                metadata_={"step": 1},
                state='{"v":1,"ts":"","versions":{},"seen":{},"sources":{"head":1},"updated":null}',
                channel_values='{"head":"x"}',
            )
        )
    body = {"checkpoint_id": str(kept), "config": {"budget": {"tokens": 7_000}}}
    key = {"Idempotency-Key": "fork-once"}
    answers = [await client.post(f"{path}/fork", json=body, headers=key) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [201] * 3
    made = {answer.json()["id"] for answer in answers}
    assert len(made) == 1
    assert answers[0].json()["limit_tokens"] == 7_000
    assert answers[0].json()["parent_run_id"] == run["id"]
    other = await client.post(f"{path}/fork", json=body)
    assert (other.status_code, other.json()["detail"].count("already has a run on its way")) == (409, 1)
    bad = await client.post(f"{path}/fork", json={"config": {"budget": {"tokens": -1}}})
    assert bad.status_code in {409, 422}


async def test_dead_letters_are_listed_shown_and_replayed(
    client: httpx.AsyncClient, new_run: Post, sessions: Sessions
) -> None:
    run = await new_run()
    await client.post(f"/api/runs/{run['id']}/stop")
    letter = DeadLetter(run_id=UUID(run["id"]), kind="run", node="work", lease_epoch=5, error="The worker died.")
    path = f"/api/dead-letters/{await add(sessions, letter)}"
    listed = (await client.get("/api/dead-letters", params={"replayed": False})).json()["items"]
    assert [item["error"] for item in listed] == ["The worker died."]
    assert (await client.get(path)).json()["replayed_at"] is None
    for _ in range(2):
        answer = await client.post(f"{path}/replay")
        assert answer.status_code == 200, answer.text
        assert answer.json()["replayed_at"] is not None
    assert (await client.get(f"/api/runs/{run['id']}")).json()["status"] == "QUEUED"
    assert (await client.get(f"/api/dead-letters/{uuid4()}")).status_code == 404


async def test_two_runs_are_compared_also_where_nothing_was_committed(client: httpx.AsyncClient, new_run: Post) -> None:
    first, second = await new_run(), await new_run()
    answer = await client.get(f"/api/runs/{first['id']}/compare/{second['id']}")
    assert answer.status_code == 200, answer.text
    compared = answer.json()
    assert [side["run_id"] for side in compared["runs"]] == [first["id"], second["id"]]
    assert (compared["diff"], compared["runs"][0]["tests"]) == (None, None)
    assert "different projects" in compared["no_diff"]
    assert (
        (await client.get(f"/api/runs/{first['id']}/compare/{first['id']}")).json()["no_diff"].startswith("Run 1 has")
    )
