"""Whole runs through the real gateway: endpoints that fail in every way, fallbacks, recording and replaying."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from backend.adapters.llm.gateway import Gateway
from backend.adapters.llm.replay import parse
from backend.domain.circuit import FAILURES as FAILURES_THAT_OPEN
from backend.operations import recordings, runs
from backend.settings import Settings
from tests.integration.engine.conftest import Company
from tests.openai_server import (
    OpenAIServer,
    Reply,
    cut,
    disconnect,
    error,
    invalid_json,
    position_of,
    recorded,
    silent,
    text,
    wrong_schema,
)

CALLS = 16
"""Model calls of a run of the chain: 2 in the plan, 2 x 3 x 2 in the work, 2 in the reviews."""
FAILURES = [
    error(429, retry_after=0),
    error(500),
    cut(),
    disconnect(),
    invalid_json(usage=True),
    wrong_schema(),
    silent(),
]


@pytest.fixture
async def over_http(company: Company, tmp_path: Path) -> AsyncIterator[Company]:
    """The company of the engine's tests, with the real gateway in place of the scripted transport."""
    gateway = Gateway(Settings(home=tmp_path, redis_url=None))
    company.transport = gateway  # type: ignore[assignment] # the real transport where the scripted one stood
    company.executor = company.worker("http")
    yield company
    await gateway.close()


PATIENT_SECONDS = 60
"""A busy machine may hold a reply up for seconds: only a test of silence may give up on it."""
IMPATIENT_SECONDS = 8


def models(server: OpenAIServer, **more: Any) -> dict[str, Any]:
    endpoint = {"base_url": server.base_url, "timeout_seconds": PATIENT_SECONDS}
    return {"models": {"provider": "loop", "default": "gpt-4o", "providers": {"loop": endpoint | more}}}


def said(headers: Mapping[str, str]) -> Reply:
    place = position_of(headers)
    assert place is not None
    return text("{}/{}/{}/{}/{}".format(*place)).billed(100, 20, 10)


async def totals(company: Company, run_id: UUID) -> tuple[int, int, Decimal, int]:
    row = await company.row(run_id)
    return row["spent_tokens_input"], row["spent_tokens_output"], row["spent_usd"], row["model_calls"]


async def test_a_run_over_http_is_metered_to_the_token(over_http: Company) -> None:
    with OpenAIServer(lambda _body, headers: said(headers)) as server:
        run_id = await over_http.run(**models(server))
        await over_http.executor.execute(run_id)
    assert (await over_http.row(run_id))["status"] == "COMPLETED"
    assert len(server.requests) == CALLS
    # gpt-4o: 90 plain and 10 cached input tokens and 20 output tokens a call.
    each = Decimal("0.000438")
    assert await totals(over_http, run_id) == (CALLS * 100, CALLS * 20, CALLS * each, CALLS)
    await over_http.check(run_id)


async def test_a_streamed_run_is_metered_as_one_that_is_not_and_who_does_not_listen_holds_it_up_never(
    over_http: Company,
) -> None:
    canary = "AKIA" + "CANARY4M2PLN5RTU"

    def script(body: dict[str, Any], headers: Mapping[str, str]) -> Reply:
        assert body["stream"] is True
        assert body["stream_options"] == {"include_usage": True}
        return text(f"{said(headers).content} says {canary} and more").billed(100, 20, 10)

    deaf = asyncio.Event()
    hear = over_http.bell.say

    async def say(run_id: UUID, words: bytes) -> bool:
        await hear(run_id, words)
        await deaf.wait()
        return True

    over_http.bell.say = say  # type: ignore[method-assign] # a broker that takes words and never answers
    with OpenAIServer(script) as server:
        run_id = await over_http.run(**models(server, stream=True))
        await over_http.executor.execute(run_id)
    assert (await over_http.row(run_id))["status"] == "COMPLETED"
    assert await totals(over_http, run_id) == (CALLS * 100, CALLS * 20, CALLS * Decimal("0.000438"), CALLS)
    await over_http.check(run_id)
    deaf.set()
    await over_http.until(lambda: len(over_http.bell.said) == CALLS)
    first = next(told for told in over_http.bell.said if told["node"] == "plan" and told["ordinal"] == 1)
    assert first["text"] == "pm/plan/None/1/1 says *** and more"
    assert (first["type"], first["role"], first["attempt"], first["tool"]) == ("tokens", "pm", 1, None)
    assert canary not in json.dumps(over_http.bell.said)


async def test_a_stream_that_is_cut_is_booked_as_any_cut_reply(over_http: Company) -> None:
    cuts = [cut(text("half of this is lost"))]
    with OpenAIServer(lambda _body, headers: cuts.pop() if cuts else said(headers)) as server:
        run_id = await over_http.run(**models(server, stream=True))
        await over_http.executor.execute(run_id)
    row = await over_http.pool.fetchrow("SELECT * FROM model_calls WHERE run_id = $1 AND status = 'failed'", run_id)
    assert row["tokens_input"] + row["tokens_output"] == row["reserved_tokens"] > 0
    assert (await over_http.row(run_id))["status"] == "COMPLETED"
    await over_http.check(run_id)


@pytest.mark.parametrize(
    ("budget", "price", "booked"),
    [
        ({"usd": "100"}, {"input": 1, "output": 2}, "ceiling"),
        ({}, {"input": 1, "output": 2}, "estimated"),
        ({"usd": "100"}, {"input": 0, "output": 0}, "estimated"),
        ({"tokens": 1_000_000}, {"input": 1, "output": 2}, "estimated"),
    ],
    ids=["money is limited", "nothing is limited", "it costs nothing", "tokens are limited"],
)
async def test_a_reply_that_names_no_usage_never_understates_what_a_limit_in_usd_counts(
    over_http: Company, budget: dict[str, Any], price: dict[str, Any], booked: str
) -> None:
    with OpenAIServer(lambda _body, headers: said(headers).unmetered()) as server:
        settings = models(server)
        settings["models"]["prices"] = {"gpt-4o": price}
        run_id = await over_http.run(budget=budget, **settings)
        await over_http.executor.execute(run_id)
    row = await over_http.row(run_id)
    assert row["status"] == "COMPLETED"
    calls = await over_http.pool.fetch("SELECT * FROM model_calls WHERE run_id = $1", run_id)
    for call in calls:
        at_ceiling = (call["tokens_input"] + call["tokens_output"], call["cost_usd"]) == (
            call["reserved_tokens"],
            call["reserved_usd"],
        )
        assert at_ceiling == (booked == "ceiling")
    told = await over_http.pool.fetch(
        "SELECT DISTINCT payload ->> 'usage' AS said FROM events WHERE run_id = $1 AND type = 'model.called'", run_id
    )
    assert [row["said"] for row in told] == [booked]
    await over_http.check(run_id)


async def test_an_endpoint_that_fails_in_every_way_once_costs_time_and_loses_nothing(over_http: Company) -> None:
    tried: dict[Any, int] = {}

    def script(_body: dict[str, Any], headers: Mapping[str, str]) -> Reply:
        place = position_of(headers)
        tried[place] = tried.get(place, 0) + 1
        return FAILURES[len(tried) % len(FAILURES)] if tried[place] == 1 else said(headers)

    with OpenAIServer(lambda _body, headers: said(headers)) as calm, OpenAIServer(script) as wild:
        quiet = await over_http.run(**models(calm))
        stormy = await over_http.run(**models(wild, timeout_seconds=IMPATIENT_SECONDS))
        for run_id in (quiet, stormy):
            await over_http.executor.execute(run_id)
    assert [line for line in await over_http.story(stormy) if line[0] in ("run", "task", "comment", "call")] == [
        line for line in await over_http.story(quiet) if line[0] in ("run", "task", "comment", "call")
    ]
    assert set(tried.values()) == {2}
    booked = await over_http.pool.fetchrow(
        "SELECT count(*) FILTER (WHERE status = 'done') AS done, count(*) FILTER (WHERE status = 'failed') AS failed"
        " FROM model_calls WHERE run_id = $1",
        stormy,
    )
    assert (booked["done"], booked["failed"]) == (CALLS, CALLS)
    await over_http.check(stormy)


async def test_the_fallback_answers_when_the_first_provider_is_down(over_http: Company) -> None:
    with (
        OpenAIServer(lambda _body: error(503)) as down,
        OpenAIServer(lambda _body, headers: said(headers)) as spare,
    ):
        settings = models(down, retries=0, fallbacks=["spare"])
        settings["models"]["providers"]["spare"] = {"base_url": spare.base_url, "default_model": "gpt-4o-mini"}
        run_id = await over_http.run(**settings)
        await over_http.executor.execute(run_id)
    assert (await over_http.row(run_id))["status"] == "COMPLETED"
    rows = await over_http.pool.fetch(
        "SELECT provider, model, status, count(*) FROM model_calls WHERE run_id = $1 GROUP BY 1, 2, 3 ORDER BY 1",
        run_id,
    )
    # After ten failures in a row the first provider is not asked any more: calls go to the spare one at once.
    (*first, failed), second = (tuple(row) for row in rows)
    assert (first, second) == (["loop", "gpt-4o", "failed"], ("spare", "gpt-4o-mini", "done", CALLS))
    assert len(down.requests) == failed
    assert FAILURES_THAT_OPEN <= failed < CALLS
    await over_http.check(run_id)


async def test_no_provider_that_answers_fails_the_run_and_a_retry_goes_on(over_http: Company) -> None:
    refusals = [error(401, "no such key")]
    with OpenAIServer(lambda _body, headers: refusals.pop() if refusals else said(headers)) as server:
        run_id = await over_http.run(**models(server))
        await over_http.executor.execute(run_id)
        row = await over_http.row(run_id)
        assert (row["status"], row["stop_reason"]) == ("FAILED", "model_unavailable")
        assert "answered 401: no such key" in row["error"]
        assert (await totals(over_http, run_id))[:3] == (0, 0, 0)
        await over_http.operate(runs.retry, run_id, by="ada")
        await over_http.executor.execute(run_id)
    assert (await over_http.row(run_id))["status"] == "COMPLETED"
    assert (await totals(over_http, run_id))[0] == CALLS * 100
    await over_http.check(run_id)


async def test_a_recorded_run_replays_to_the_same_end_at_no_cost(over_http: Company, tmp_path: Path) -> None:
    with OpenAIServer(lambda _body, headers: said(headers)) as server:
        first = await over_http.run(**models(server))
        await over_http.executor.execute(first)
    async with over_http.sessions() as session:
        written = await recordings.record(session, first)
    (tmp_path / "recordings").mkdir()
    (tmp_path / "recordings" / "mine.yaml").write_text(written, "utf-8")
    replaying = {"models": {"provider": "tape", "providers": {"tape": {"kind": "replay", "recording": "mine"}}}}
    second = await over_http.run(**replaying)
    await over_http.executor.execute(second)
    assert (await over_http.row(second))["final_report"] == (await over_http.row(first))["final_report"]
    assert await totals(over_http, second) == (CALLS * 100, CALLS * 20, 0, CALLS)
    kept = await over_http.pool.fetchval(
        "SELECT sum((response #>> '{marks,recorded_cost_usd}')::numeric) FROM model_calls WHERE run_id = $1", second
    )
    assert kept == (await over_http.row(first))["spent_usd"]
    with OpenAIServer(recorded(parse(written))) as server:
        third = await over_http.run(**models(server))
        await over_http.executor.execute(third)
    assert await totals(over_http, third) == await totals(over_http, first)
    assert await over_http.story(third) == await over_http.story(first)


async def test_a_recording_that_lacks_a_step_ends_the_run_with_its_name(over_http: Company, tmp_path: Path) -> None:
    (tmp_path / "recordings").mkdir()
    (tmp_path / "recordings" / "short.yaml").write_text(
        "recording: 1\ntitle: Short\nsteps: [{role: pm, node: plan, ordinal: 1, reply: {content: x}}]", "utf-8"
    )
    replaying = {"models": {"provider": "tape", "providers": {"tape": {"kind": "replay", "recording": "short"}}}}
    run_id = await over_http.run(**replaying)
    await over_http.executor.execute(run_id)
    row = await over_http.row(run_id)
    assert (row["status"], row["stop_reason"]) == ("FAILED", "not_covered")
    assert "role pm, node plan, visit 1, call 2" in row["error"]
