"""The replay provider, and the same recording played over HTTP through the real provider."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from importlib import resources
from pathlib import Path

import pytest

from backend.adapters.llm import replay
from backend.adapters.llm.gateway import Gateway
from backend.domain.config import RunConfig
from backend.domain.model import Position, Usage
from backend.domain.patch import merge
from backend.errors import Invalid, NotFound
from backend.settings import Settings
from tests.integration.adapters.llm.conftest import Caller
from tests.openai_server import OpenAIServer, recorded

TEXT = """
recording: 1
title: A demo
brief: Make it.
steps:
  - {role: pm, node: plan, ordinal: 1, model: gpt-4o, usage: {input: 1000, output: 100, cached: 10},
     captures: {id: 'id=(\\w+)'},
     reply: {content: null, finish_reason: tool_calls, tool_calls: [{name: plan, arguments: {for: '{{id}}'}}]}}
  - {role: pm, node: plan, visit: 2, task: 't/1', ordinal: 3, reply: {content: done}}
"""
ASKED = ({"role": "user", "content": "id=abc"},)


@pytest.fixture
async def caller(tmp_path: Path) -> AsyncIterator[Caller]:
    """A gateway of an installation that keeps a recording under the name `demo`."""
    (tmp_path / "recordings").mkdir()
    (tmp_path / "recordings" / "demo.yaml").write_text(TEXT, "utf-8")
    gateway = Gateway(Settings(home=tmp_path, redis_url=None))
    yield Caller(gateway)
    await gateway.close()


def replaying(name: str) -> RunConfig:
    return merge({"models": {"provider": "show", "providers": {"show": {"kind": "replay", "recording": name}}}})


@pytest.fixture
def shipped() -> RunConfig:
    """Settings that replay that recording."""
    return replaying("demo")


async def test_a_recorded_call_is_answered_with_its_usage_at_no_cost(caller: Caller, shipped: RunConfig) -> None:
    exchange = await caller.send(shipped, messages=ASKED)
    assert exchange.tool_calls[0].name == "plan"
    assert exchange.tool_calls[0].arguments == '{"for": "abc"}'
    assert (exchange.usage, exchange.cost_usd, exchange.model) == (Usage(1000, 100, 10), 0, "gpt-4o")
    assert exchange.raw["recorded_cost_usd"] == "0.003488"


async def test_the_same_call_gives_the_same_answer_twice(caller: Caller, shipped: RunConfig) -> None:
    assert (await caller.send(shipped, messages=ASKED)).raw == (await caller.send(shipped, messages=ASKED)).raw


async def test_a_call_that_is_not_recorded_is_named(caller: Caller, shipped: RunConfig) -> None:
    failure = await caller.failure(shipped, position=Position("plan", 1, 2, None))
    assert (failure.kind, failure.retryable) == ("not_covered", False)
    assert "role pm, node plan, visit 1, call 2" in failure.message
    assert "'A demo'" in failure.message


async def test_a_capture_that_is_missing_is_named(caller: Caller, shipped: RunConfig) -> None:
    failure = await caller.failure(shipped, messages=({"role": "user", "content": "nothing"},))
    assert failure.kind == "not_covered"
    assert "holds nothing that" in failure.message


async def test_a_recording_that_is_not_there_is_named(caller: Caller) -> None:
    assert "no recording 'gone'" in (await caller.failure(replaying("gone"))).message


async def test_a_recording_that_was_written_anew_is_read_anew(
    caller: Caller, shipped: RunConfig, tmp_path: Path
) -> None:
    await caller.send(shipped, messages=ASKED)
    file = tmp_path / "recordings" / "demo.yaml"
    file.write_text(TEXT.replace("input: 1000", "input: 7"), "utf-8")
    os.utime(file, (1, 1))
    assert (await caller.send(shipped, messages=ASKED)).usage.input_tokens == 7


async def test_a_recording_plays_over_http_with_the_same_replies_and_real_metering(caller: Caller) -> None:
    with OpenAIServer(recorded(replay.parse(TEXT))) as server:
        config = caller.config(server)
        first = await caller.send(config, messages=ASKED)
        second = await caller.send(config, messages=ASKED, position=Position("plan", 2, 3, "t/1"))
        failure = await caller.failure(config, messages=ASKED, position=Position("plan", 9, 9, None))
    assert first.tool_calls[0].arguments == '{"for": "abc"}'
    assert first.usage == Usage(1000, 100, 10)
    assert first.cost_usd > 0
    assert second.content == "done"
    assert "has no step for role pm, node plan, visit 9, call 9" in failure.message


@pytest.mark.parametrize("name", ["../standard/1", "../recordings/demo", "/etc/passwd", "", "a/b", "x" * 500, "none"])
def test_a_recording_is_found_by_name_only(name: str, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        replay.Recordings(tmp_path).load(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is not YAML"),
        ("5", "is not in order"),
        (TEXT.replace("recording: 1", "recording: 2"), "at /recording"),
        (TEXT.replace("role: pm", "role: cook", 1), "at /steps/0/role"),
        (TEXT.replace("visit: 2, task: 't/1', ordinal: 3", "ordinal: 1"), "two steps are recorded"),
    ],
)
def test_a_recording_that_is_not_in_order_says_where(text: str, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        replay.parse(text)


def test_the_shipped_showcases_are_in_order() -> None:
    folder = resources.files("templates").joinpath("showcases")
    names = [file.name.removesuffix(".yaml") for file in folder.iterdir()] if folder.is_dir() else []
    for name in names:
        recording = replay.Recordings().load(name)
        assert recording.steps
        assert recording.brief
