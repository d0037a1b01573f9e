"""`company record`: from the rows of a run to YAML that plays again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db.tables import ModelCall, ProjectRun
from backend.adapters.llm.replay import parse
from backend.errors import Conflict, NotFound
from backend.operations import recordings

MakeRun = Callable[..., Awaitable[ProjectRun]]


def call(run: ProjectRun, ordinal: int, content: str, **changed: Any) -> ModelCall:
    response = {
        "content": content,
        "tool_calls": [{"id": "c", "name": "submit", "arguments": '{"summary": "done: yes\\nno"}'}],
        "finish_reason": "tool_calls",
        "usage": {"input_tokens": 10, "output_tokens": 4, "cached_tokens": 1},
        "model": "gpt-4o-2024-08-06",
    }
    values: dict[str, Any] = {
        "run_id": run.id,
        "node": "dev_work",
        "visit": 1,
        "ordinal": ordinal,
        "attempt": 1,
        "role": "developer",
        "task_key": "t1",
        "provider": "openai",
        "model": "gpt-4o",
        "status": "done",
        "replayable": True,
        "request_hash": "x",
        "request": {"messages": [{"role": "user", "content": "go"}], "after": 0},
        "response": response,
        "reserved_tokens": 0,
        "reserved_usd": 0,
        "lease_epoch": 1,
        "settled_at": datetime.now(UTC),
    }
    return ModelCall(**(values | changed))


async def test_a_run_is_written_out_and_reads_back(session: AsyncSession, make_run: MakeRun) -> None:
    run = await make_run(session)
    hostile = "a: b\n---\n  - 'x' \u2028 {{not_a_capture}} 漢字\n\ttab"
    session.add_all([call(run, 2, "second"), call(run, 1, hostile)])
    await session.flush()
    recording = parse(await recordings.record(session, run.id))
    assert recording.brief == run.brief
    first = recording.find("developer", "dev_work", "t1", 1, 1)
    assert first is not None
    assert first.reply_to([]).content == hostile
    assert first.reply.tool_calls[0].arguments == {"summary": "done: yes\nno"}
    assert (first.model, first.usage.input, first.usage.cached) == ("gpt-4o-2024-08-06", 10, 1)
    assert recording.find("developer", "dev_work", "t1", 1, 2) is not None


async def test_only_the_last_usable_answer_of_a_call_is_written(session: AsyncSession, make_run: MakeRun) -> None:
    run = await make_run(session)
    session.add_all(
        [
            call(run, 1, "unusable", replayable=False),
            call(run, 1, "failed", attempt=2, status="failed", response=None),
            call(run, 1, "older", attempt=3),
            call(run, 1, "newest", attempt=4),
        ]
    )
    await session.flush()
    recording = parse(await recordings.record(session, run.id))
    assert [step.reply.content for step in recording.steps] == ["newest"]


async def test_a_run_without_calls_cannot_be_recorded(session: AsyncSession, make_run: MakeRun) -> None:
    run = await make_run(session)
    with pytest.raises(Conflict, match="nothing to record"):
        await recordings.record(session, run.id)


async def test_a_run_that_is_not_there_is_said(session: AsyncSession) -> None:
    with pytest.raises(NotFound):
        await recordings.record(session, uuid4())
