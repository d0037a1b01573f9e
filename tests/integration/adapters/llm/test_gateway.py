"""The gateway against a real HTTP endpoint: what is sent, what is understood, what is metered."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from typing import Any

import pytest

from backend.domain.model import ModelRequest, Position, ToolCall, Usage
from backend.domain.model_choice import choices
from backend.domain.role import Role
from backend.domain.words import Token
from tests.integration.adapters.llm.conftest import MESSAGES, SECRET, Caller
from tests.openai_server import OpenAIServer, Reply, error, json_body, text, tool_calls

TOOL = {
    "type": "function",
    "function": {
        "name": "plan",
        "description": "Make a plan.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    },
}


async def test_a_reply_comes_back_with_its_usage_and_price(caller: Caller) -> None:
    with OpenAIServer([text("hello").billed(1000, 500, cached=200)]) as server:
        exchange = await caller.send(caller.config(server))
    assert (exchange.content, exchange.finish_reason, exchange.tool_calls) == ("hello", "stop", ())
    assert exchange.usage == Usage(1000, 500, 200)
    # gpt-4o: 2.50 in, 1.25 cached, 10.00 out for a million.
    assert exchange.cost_usd == Decimal("0.007250")
    assert exchange.raw["usage"]["prompt_tokens"] == 1000
    assert exchange.latency_seconds > 0


async def test_messages_tools_and_parameters_reach_the_endpoint_unchanged(caller: Caller) -> None:
    history = (
        *MESSAGES,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "plan", "arguments": '{"a": 1}'}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "done\u2028 — 漢字"},
    )
    with OpenAIServer([text("ok")]) as server:
        config = caller.config(server, {"roles": {"pm": {"temperature": 0.3, "max_output_tokens": 64}}})
        await caller.send(config, messages=history, tools=(TOOL,), tool_choice="required")
    sent = server.requests[0].json
    assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("gpt-4o", 0.3, 64)
    assert (sent["tools"], sent["tool_choice"]) == ([TOOL], "required")
    assert [message["role"] for message in sent["messages"]] == ["system", "user", "assistant", "tool"]
    assert sent["messages"][2]["tool_calls"][0]["function"]["name"] == "plan"
    assert sent["messages"][3]["content"] == "done\u2028 — 漢字"
    assert sent["messages"][3]["tool_call_id"] == "c1"


async def test_tool_calls_come_back_as_they_were_written_even_when_they_are_no_json(caller: Caller) -> None:
    with OpenAIServer([tool_calls(("plan", {"a": 1}), ("plan", '{"a": '), content="Let me see.")]) as server:
        exchange = await caller.send(caller.config(server), tools=(TOOL,))
    assert exchange.tool_calls == (
        ToolCall("call_1_plan", "plan", '{"a": 1}'),
        ToolCall("call_2_plan", "plan", '{"a": '),
    )
    assert (exchange.content, exchange.finish_reason) == ("Let me see.", "tool_calls")


@pytest.mark.parametrize("arguments", ['{"a": ', "", "[1]", "null", "5", "[" * 100_000, '{"a": "\u2028"}'])
async def test_a_tool_call_in_the_history_is_sent_again_however_broken_it_is(caller: Caller, arguments: str) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "plan", "arguments": arguments}}
    history = (
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "that was no JSON object"},
    )
    with OpenAIServer([text("ok")]) as server:
        await caller.send(caller.config(server), messages=history, tools=(TOOL,))
    sent = server.requests[0].json["messages"]
    assert sent[2]["tool_calls"][0] == call
    assert sent[3]["content"] == "that was no JSON object"


async def test_a_request_that_cannot_be_written_is_refused_and_not_sent(caller: Caller) -> None:
    with OpenAIServer([text("never")]) as server:
        failure = await caller.failure(caller.config(server), messages=({"role": "wizard", "content": "x"},))
        assert server.requests == []
    assert (failure.kind, failure.may_be_billed) == ("refused", False)


async def test_a_reply_that_ran_out_of_tokens_is_told_apart(caller: Caller) -> None:
    with OpenAIServer([text("cut o", finish_reason="length")]) as server:
        assert (await caller.send(caller.config(server))).finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_server_that_sends_no_usage_is_metered_by_estimate_and_marked(caller: Caller, stream: bool) -> None:
    async def listen(_token: Token) -> None:
        return None

    with OpenAIServer([text("word " * 100).unmetered()]) as server:
        exchange = await caller.send(caller.config(server), on_token=listen if stream else None)
    assert exchange.raw["usage_estimated"] is True
    assert exchange.usage.output_tokens == 125
    assert exchange.usage.input_tokens > 10
    assert exchange.cost_usd > 0


async def test_a_stream_is_heard_word_by_word_and_metered_whole(caller: Caller) -> None:
    heard: list[str] = []

    async def listen(token: Token) -> None:
        heard.append(token.text)

    reply = tool_calls(("plan", {"a": 12345}), content="one two three").billed(11, 7, 3)
    with OpenAIServer([reply]) as server:
        exchange = await caller.send(caller.config(server), tools=(TOOL,), on_token=listen)
    assert (heard[:3], exchange.content) == (["one ", "two ", "three"], "one two three")
    assert "".join(heard[3:]) == '{"a": 12345}'
    assert exchange.tool_calls == (ToolCall("call_1_plan", "plan", '{"a": 12345}'),)
    assert exchange.usage == Usage(11, 7, 3)


async def test_what_a_listener_raises_is_not_taken_for_a_bad_reply(caller: Caller) -> None:
    async def listen(_token: Token) -> None:
        raise ValueError("the listener is broken")

    with OpenAIServer([text("one two")]) as server, pytest.raises(ValueError, match="the listener is broken"):
        await caller.send(caller.config(server), on_token=listen)


async def test_a_server_that_does_not_stream_when_asked_to_is_understood(caller: Caller) -> None:
    heard: list[str] = []

    async def listen(token: Token) -> None:
        heard.append(token.text)

    body = {"id": "x", "choices": [{"message": {"role": "assistant", "content": "all"}, "finish_reason": "stop"}]}
    with OpenAIServer([json_body(body | {"usage": {"prompt_tokens": 1, "completion_tokens": 2}})]) as server:
        exchange = await caller.send(caller.config(server), on_token=listen)
    assert (exchange.content, exchange.usage) == ("all", Usage(1, 2, 0))


REFUSALS = {
    "stream_options": ("Unrecognized request argument supplied: stream_options", [True, True]),
    "stream": ("This model does not support the parameter 'stream'", [True, False]),
}


@pytest.mark.parametrize("refused", REFUSALS)
async def test_an_endpoint_that_refuses_to_stream_or_to_meter_a_stream_is_asked_without(
    caller: Caller, refused: str
) -> None:
    complaint, streamed = REFUSALS[refused]

    def script(body: dict[str, Any]) -> Reply:
        return error(400, complaint) if body.get(refused) else text("one two").billed(5, 2)

    async def listen(token: Token) -> None:
        return None

    with OpenAIServer(script) as server:
        exchange = await caller.send(caller.config(server), on_token=listen)
        assert [received.json.get("stream") for received in server.requests] == streamed
    assert exchange.content == "one two"


async def test_an_endpoint_that_names_no_usage_in_a_stream_is_asked_for_whole_replies_from_then_on(
    caller: Caller,
) -> None:
    async def listen(token: Token) -> None:
        return None

    def script(body: dict[str, Any]) -> Reply:
        return text("one two").unmetered() if body.get("stream") else text("one two").billed(5, 2)

    with OpenAIServer(script) as server:
        config = caller.config(server)
        marked = [(await caller.send(config, on_token=listen)).raw.get("usage_estimated") for _ in range(3)]
        assert [received.json.get("stream") for received in server.requests] == [True, False, False]
    assert marked == [True, None, None]


async def test_a_key_that_an_endpoint_echoes_in_a_stream_is_heard_by_nobody(caller: Caller) -> None:
    heard: list[Token] = []

    async def listen(token: Token) -> None:
        heard.append(token)

    pieces = [SECRET[:5], SECRET[5:9], SECRET[9:], " twice ", SECRET, " and sk-can", " ends sk-ca"]
    deltas = [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces]
    lines = [f"data: {json.dumps(delta)}\n\n" for delta in deltas]
    last = 'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
    body = ("".join(lines) + last).encode()
    with OpenAIServer([Reply(raw=body, headers={"Content-Type": "text/event-stream"})]) as server:
        await caller.send(caller.config(server, key_variable="CANARY_API_KEY"), on_token=listen)
    assert "".join(token.text for token in heard) == "[key] twice [key] and sk-can ends sk-ca"


@pytest.mark.parametrize("model", ["o1-mini", "o3", "gpt-5"])
async def test_reasoning_models_get_max_completion_tokens_and_no_temperature(caller: Caller, model: str) -> None:
    with OpenAIServer([text("ok")]) as server:
        await caller.send(caller.config(server, {"roles": {"pm": {"model": model, "temperature": 0.7}}}))
    sent = server.requests[0].json
    assert "max_completion_tokens" in sent
    assert "max_tokens" not in sent
    assert "temperature" not in sent


async def test_a_parameter_that_the_endpoint_refuses_is_left_out_from_then_on(caller: Caller) -> None:
    def picky(body: dict[str, Any]) -> Reply:
        if "max_tokens" in body:
            return error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        if "temperature" in body:
            return error(400, "Unsupported value: 'temperature' does not support 0.7 with this model.")
        return text("ok")

    with OpenAIServer(picky) as server:
        config = caller.config(server, {"roles": {"pm": {"model": "house-model", "temperature": 0.7}}})
        assert (await caller.send(config)).content == "ok"
        assert len(server.requests) == 3
        assert (await caller.send(config)).content == "ok"
        assert len(server.requests) == 4


async def test_an_endpoint_that_refuses_whatever_is_sent_is_not_asked_for_ever(caller: Caller) -> None:
    with OpenAIServer(lambda _body: error(400, "max_tokens and max_completion_tokens are not supported")) as server:
        assert (await caller.failure(caller.config(server))).kind == "refused"
        assert len(server.requests) <= 4


@pytest.mark.parametrize(
    "complaint",
    [
        "max_tokens is too large: this model supports at most 4096 completion tokens",
        "temperature must be below 2",
        "bad",
    ],
)
async def test_a_refusal_that_is_about_something_else_is_not_sent_twice(caller: Caller, complaint: str) -> None:
    with OpenAIServer([error(400, complaint), text("never")]) as server:
        assert (await caller.failure(caller.config(server))).kind == "refused"
    assert len(server.requests) == 1


async def test_the_call_names_its_position_and_its_key_to_the_provider(caller: Caller) -> None:
    with OpenAIServer([text("ok")]) as server:
        config = caller.config(server, key_variable="CANARY_API_KEY")
        await caller.send(config, position=Position("dev_work", 3, 7, "a/b ü"))
    headers = server.requests[0].headers
    assert headers["x-client-request-id"] == "company/pm/dev_work/a%2Fb%20%C3%BC/3/7"
    assert headers["authorization"] == f"Bearer {SECRET}"


async def test_a_key_that_an_endpoint_echoes_is_taken_out(caller: Caller) -> None:
    body = {"id": SECRET, "choices": [{"message": {"content": f"your key is {SECRET}"}, "finish_reason": "stop"}]}
    refusal = error(401, f"Incorrect API key provided: {SECRET}")
    with OpenAIServer([json_body(body), refusal]) as server:
        config = caller.config(server, key_variable="CANARY_API_KEY")
        exchange = await caller.send(config)
        assert SECRET not in f"{exchange.content} {exchange.raw}"
        failure = await caller.failure(config)
    assert failure.kind == "refused"
    assert SECRET not in failure.message


async def test_a_key_that_is_not_set_is_refused_before_anything_is_sent(caller: Caller) -> None:
    with OpenAIServer([text("never")]) as server:
        failure = await caller.failure(caller.config(server, key_variable="MISSING_API_KEY"))
    assert failure.kind == "refused"
    assert "set MISSING_API_KEY" in failure.message
    assert server.requests == []


async def test_an_unpriced_model_is_refused_under_a_money_limit_before_anything_is_sent(caller: Caller) -> None:
    with OpenAIServer([text("never")]) as server:
        config = caller.config(server, {"budget": {"usd": 1}, "roles": {"pm": {"model": "house-model"}}})
        failure = await caller.failure(config)
        assert "set models.prices.house-model" in failure.message
        assert server.requests == []


async def test_a_quote_covers_what_is_billed_and_learns_from_it(caller: Caller) -> None:
    with OpenAIServer([text("ok").billed(40, 5)]) as server:
        config = caller.config(server, {"roles": {"pm": {"max_output_tokens": 100}}})
        request = ModelRequest(role=Role.PM, messages=MESSAGES)
        choice = choices(config, request)[0]
        before = caller.gateway.quote(choice, request, config)
        await caller.send(config)
        after = caller.gateway.quote(choice, request, config)
    assert before.max_output_tokens == 100
    assert before.usd is not None
    assert before.usd > Decimal("0.001")
    assert before.price_version.startswith("genai-prices")
    assert after.input_tokens > 40 > before.input_tokens
    other = ModelRequest(role=Role.QA, messages=MESSAGES)
    assert caller.gateway.quote(choice, other, config).input_tokens == before.input_tokens


async def test_many_calls_at_once_share_one_client(caller: Caller) -> None:
    with OpenAIServer(lambda body: text(body["messages"][1]["content"]).after(0.05)) as server:
        config = caller.config(server)
        asked = [(MESSAGES[0], {"role": "user", "content": str(number)}) for number in range(100)]
        answers = await asyncio.gather(*(caller.send(config, messages=messages) for messages in asked))
    assert [answer.content for answer in answers] == [str(number) for number in range(100)]
    assert len(server.requests) == 100


async def test_a_cancelled_call_ends_at_once_and_the_next_one_works(caller: Caller) -> None:
    with OpenAIServer([text("late").after(60), text("ok")]) as server:
        config = caller.config(server, timeout_seconds=30)
        call = asyncio.create_task(caller.send(config))
        while not server.requests:
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert (await caller.send(config)).content == "ok"
