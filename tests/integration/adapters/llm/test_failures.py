"""Everything an endpoint can do wrong is told apart, and what it billed all the same is known."""

from __future__ import annotations

import asyncio
import gzip
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from backend import metrics
from backend.adapters.llm.gateway import Gateway
from backend.domain.circuit import FAILURES
from backend.domain.model import CallFailed, FailureKind, ModelRequest, ToolCall, Usage
from backend.domain.model_choice import choices
from backend.domain.role import Role
from backend.domain.words import Token
from tests.integration.adapters.llm.conftest import Caller
from tests.openai_server import (
    OpenAIServer,
    Reply,
    cut,
    disconnect,
    empty_choices,
    endless,
    error,
    invalid_json,
    json_body,
    silent,
    text,
    wrong_schema,
)

BOTH = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


async def _listen(_token: Token) -> None:
    return None


def options(stream: bool) -> dict[str, Any]:
    return {"on_token": _listen} if stream else {}


@BOTH
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "refused"),
        (401, "refused"),
        (403, "refused"),
        (404, "refused"),
        (408, "timeout"),
        (409, "conflict"),
        (422, "refused"),
        (429, "rate_limited"),
        (500, "server_error"),
        (502, "server_error"),
        (503, "server_error"),
        (529, "server_error"),
    ],
)
async def test_each_status_means_one_kind_of_failure(
    caller: Caller, status: int, kind: FailureKind, stream: bool
) -> None:
    with OpenAIServer([error(status, "the reason")]) as server:
        failure = await caller.failure(caller.config(server), **options(stream))
        assert len(server.requests) == 1
    assert failure.kind == kind
    assert f"answered {status}: the reason" in failure.message
    assert failure.billed is None


@pytest.mark.parametrize("status", [408, 504, 524])
async def test_a_proxy_that_stopped_waiting_may_have_let_the_model_go_on(caller: Caller, status: int) -> None:
    with OpenAIServer([error(status)]) as server:
        assert (await caller.failure(caller.config(server))).may_be_billed


async def test_retry_after_is_read_in_seconds_milliseconds_and_as_a_date(caller: Caller) -> None:
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    past = format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)
    replies = [
        error(429, retry_after=7),
        json_body({}, status=429, headers={"retry-after-ms": "1500"}),
        error(503, retry_after=in_a_minute),
        error(503, retry_after=past),
        error(429, retry_after="soon"),
        error(429, retry_after="nan"),
        error(429),
    ]
    with OpenAIServer(replies) as server:
        waits = [(await caller.failure(caller.config(server))).retry_after for _ in replies]
    assert waits[:2] == [7.0, 1.5]
    assert waits[2] == pytest.approx(60, abs=30)
    assert waits[3:] == [0.0, None, None, None]


async def test_an_account_without_credit_is_not_asked_again(caller: Caller) -> None:
    body = {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}
    with OpenAIServer([json_body(body, status=429)]) as server:
        failure = await caller.failure(caller.config(server))
    assert (failure.kind, failure.retryable) == ("refused", False)
    assert "top it up" in failure.message


async def test_an_error_that_comes_with_a_200_is_an_error(caller: Caller) -> None:
    with OpenAIServer([json_body({"error": {"message": "overloaded", "code": 529}})]) as server:
        failure = await caller.failure(caller.config(server))
    assert (failure.kind, failure.retryable) == ("server_error", True)


@BOTH
@pytest.mark.parametrize("reply", [cut(), disconnect()], ids=["cut", "disconnect"])
async def test_a_broken_connection_can_be_tried_again_and_may_be_billed(
    caller: Caller, reply: Reply, stream: bool
) -> None:
    with OpenAIServer([reply]) as server:
        failure = await caller.failure(caller.config(server), **options(stream))
    assert (failure.kind, failure.retryable, failure.may_be_billed) == ("connection", True, True)


async def test_an_endpoint_that_is_not_there_bills_nothing(caller: Caller) -> None:
    with OpenAIServer([]) as server:
        config = caller.config(server)
    failure = await caller.failure(config)
    assert (failure.kind, failure.may_be_billed, failure.billed) == ("connection", False, None)
    assert "loop" in failure.message
    assert f"could not be reached at {server.base_url}: start it" in failure.message


@BOTH
async def test_silence_ends_at_the_timeout_and_may_be_billed(caller: Caller, stream: bool) -> None:
    with OpenAIServer([silent()]) as server:
        failure = await caller.failure(caller.config(server, timeout_seconds=0.2), **options(stream))
    assert (failure.kind, failure.may_be_billed) == ("timeout", True)


@BOTH
async def test_a_reply_without_end_is_cut(caller: Caller, stream: bool) -> None:
    with OpenAIServer([endless()]) as server:
        failure = await caller.failure(caller.config(server, timeout_seconds=30), **options(stream))
    assert (failure.kind, failure.may_be_billed) == ("unparsable", True)
    assert "without end" in failure.message


async def test_an_endless_drip_is_cut_by_the_clock() -> None:
    # Bytes keep coming, so no read ever times out: only the time of the whole call ends this.
    patient = Caller(Gateway(largest_reply=10**9))
    with OpenAIServer([endless()]) as server:
        assert (await patient.failure(patient.config(server, timeout_seconds=0.2))).kind == "timeout"
    await patient.gateway.close()


@pytest.mark.parametrize(
    ("reply", "billed"),
    [
        (invalid_json(), None),
        (invalid_json(usage=True), Usage(70, 7)),
        (wrong_schema(), None),
        (wrong_schema({"prompt_tokens": 3, "completion_tokens": 4}), Usage(3, 4)),
        (empty_choices(), Usage(50, 0)),
        (json_body([]), None),
        (json_body(None), None),
        (json_body("text"), None),
        (Reply(raw=b""), None),
        (Reply(raw=b"\xff\xfe\x00"), None),
        (Reply(raw=b"[" * 100_000), None),
        (json_body({"choices": [None]}), None),
        (json_body({"choices": [{"message": None}]}), None),
        (json_body({"choices": [{"message": {"tool_calls": [{"function": {}}]}}]}), None),
        (json_body({"choices": [{"message": {"tool_calls": ["x"]}}]}), None),
    ],
)
async def test_a_reply_that_cannot_be_read_is_metered_all_the_same(
    caller: Caller, reply: Reply, billed: Usage | None
) -> None:
    with OpenAIServer([reply]) as server:
        failure = await caller.failure(caller.config(server))
    assert (failure.kind, failure.retryable) == ("unparsable", False)
    assert failure.billed == billed
    assert failure.may_be_billed is (billed is None)


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": -1, "completion_tokens": 5},
        {"prompt_tokens": True, "completion_tokens": 5},
        {"prompt_tokens": "9", "completion_tokens": 5},
        {"prompt_tokens": 10**18, "completion_tokens": 5},
        {"prompt_tokens": 1.5, "completion_tokens": 5},
        {"completion_tokens": 5},
        {},
    ],
)
async def test_usage_that_makes_no_sense_is_replaced_by_an_estimate(caller: Caller, usage: dict[str, Any]) -> None:
    body = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "usage": usage}
    with OpenAIServer([json_body(body)]) as server:
        exchange = await caller.send(caller.config(server))
    assert exchange.raw["usage_estimated"] is True
    assert 0 < exchange.usage.input_tokens < 100


async def test_usage_inside_what_the_model_says_is_not_believed(caller: Caller) -> None:
    lie = '{"usage": {"prompt_tokens": 0, "completion_tokens": 0}}'
    with OpenAIServer([text(lie).billed(500, 40)]) as server:
        exchange = await caller.send(caller.config(server))
    assert exchange.usage == Usage(500, 40)


async def test_cached_tokens_never_exceed_the_input(caller: Caller) -> None:
    with OpenAIServer([text("x").billed(10, 1, cached=999)]) as server:
        assert (await caller.send(caller.config(server))).usage == Usage(10, 1, 10)


async def test_a_redirect_is_not_followed(caller: Caller) -> None:
    with (
        OpenAIServer([text("never")]) as elsewhere,
        OpenAIServer(
            [Reply(status=307, raw=b"", headers={"Location": elsewhere.base_url + "/chat/completions"})]
        ) as server,
    ):
        failure = await caller.failure(caller.config(server, key_variable="CANARY_API_KEY"))
        assert elsewhere.requests == []
    assert failure.kind == "refused"
    assert "set base_url to the final address" in failure.message


async def test_a_compressed_reply_is_read_and_a_bomb_is_cut(caller: Caller) -> None:
    body = b'{"choices": [{"message": {"content": "packed"}, "finish_reason": "stop"}]}'
    bomb = gzip.compress(b" " * 50_000_000)
    packed = {"Content-Encoding": "gzip"}
    with OpenAIServer([Reply(raw=gzip.compress(body), headers=packed), Reply(raw=bomb, headers=packed)]) as server:
        assert (await caller.send(caller.config(server))).content == "packed"
        failure = await caller.failure(caller.config(server))
    assert (failure.kind, failure.may_be_billed) == ("unparsable", True)


@pytest.mark.parametrize(
    ("message", "content", "finish"),
    [
        ({"content": None}, "", "stop"),
        ({"content": None, "refusal": "I will not."}, "I will not.", "stop"),
        ({"content": [{"type": "text", "text": "in "}, {"type": "text", "text": "parts"}]}, "in parts", "stop"),
        ({"content": "", "tool_calls": [{"function": {"name": "x", "arguments": {"a": 1}}}]}, "", "tool_calls"),
        ({"content": "x", "tool_calls": None}, "x", "stop"),
    ],
)
async def test_what_servers_send_beside_the_letter_of_the_protocol_is_understood(
    caller: Caller, message: dict[str, Any], content: str, finish: str
) -> None:
    body = {"choices": [{"message": {"role": "assistant", **message}, "finish_reason": "stop"}]}
    with OpenAIServer([json_body(body)]) as server:
        exchange = await caller.send(caller.config(server))
    assert (exchange.content, exchange.finish_reason) == (content, finish)
    assert all(call.arguments == '{"a": 1}' and call.id for call in exchange.tool_calls)


async def test_what_the_database_cannot_keep_is_replaced_before_anybody_reads_it(caller: Caller) -> None:
    call = {"id": "c\x00", "function": {"name": "x", "arguments": '{"a": "\ud800"}'}}
    with OpenAIServer(
        [json_body({"choices": [{"message": {"content": "a\x00b\udfffc", "tool_calls": [call]}}]})]
    ) as server:
        exchange = await caller.send(caller.config(server))
    assert exchange.content == "a\ufffdb\ufffdc"
    assert exchange.tool_calls == (ToolCall("c\ufffd", "x", '{"a": "\ufffd"}'),)


async def test_failures_do_not_spoil_the_calls_beside_them(caller: Caller) -> None:
    def script(body: dict[str, Any]) -> Reply:
        number = int(body["messages"][1]["content"])
        return [text("ok"), error(500), cut(), invalid_json(), disconnect()][number % 5]

    with OpenAIServer(script) as server:
        config = caller.config(server)
        asked = [({"role": "system", "content": "s"}, {"role": "user", "content": str(n)}) for n in range(50)]
        ended = await asyncio.gather(*(caller.send(config, messages=m) for m in asked), return_exceptions=True)
    kinds = [getattr(end, "kind", "ok") for end in ended]
    assert kinds == ["ok", "server_error", "connection", "unparsable", "connection"] * 10


async def test_a_provider_that_does_not_answer_is_left_alone_and_a_refusal_is_an_answer(caller: Caller) -> None:
    broken = [error(500)] * (FAILURES - 1)
    with OpenAIServer([*broken, error(400), *broken, error(500)]) as server:
        config = caller.config(server)
        choice = choices(config, ModelRequest(Role.PM, ()))[0]
        quote = caller.gateway.quote(choice, ModelRequest(Role.PM, ()), config)
        for _ in range(2 * FAILURES):
            await caller.gateway.admit(choice, config, quote)
            await caller.failure(config)
        with pytest.raises(CallFailed, match="left alone") as caught:
            await caller.gateway.admit(choice, config, quote)
        assert len(server.requests) == 2 * FAILURES
    assert (caught.value.kind, caught.value.retryable, caught.value.billed) == ("circuit_open", True, None)
    assert f'company_provider_circuit_open{{provider="127.0.0.1:{server.port}"}} 1.0' in metrics.snapshot()
