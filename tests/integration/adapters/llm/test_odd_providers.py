"""How servers that call themselves compatible answer oddly: none crashes the gateway, and all are metered."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backend.domain.model import CallFailed, Usage
from tests.integration.adapters.llm.conftest import Caller
from tests.openai_server import OpenAIServer, Reply

BILL = {"prompt_tokens": 30, "completion_tokens": 7, "total_tokens": 37}
BILLED = Usage(30, 7, 0)
CALL = {"id": "c1", "type": "function", "function": {"name": "plan", "arguments": {"a": 1}}}


def said(message: Any, *, finish: Any = "stop", usage: Any = BILL, **more: Any) -> bytes:
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return json.dumps({"id": "x", "model": "m", "choices": [choice], "usage": usage, **more}).encode()


def streamed(*lines: str) -> bytes:
    return "".join(f"{line}\n\n" for line in lines).encode()


DELTA = 'data:{"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}'
LAST = 'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":' + json.dumps(BILL) + "}"

UNDERSTOOD: dict[str, tuple[bytes, str]] = {
    "null content": (said({"content": None}), ""),
    "no content at all": (said({"role": "assistant"}), ""),
    "content as parts": (said({"content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}), "hi"),
    "a refusal": (said({"content": None, "refusal": "no"}), "no"),
    "reasoning beside the content": (said({"content": "hi", "reasoning_content": "hm"}), "hi"),
    "no finish reason": (said({"content": "hi"}, finish=None), "hi"),
    "tool calls that end with stop": (said({"content": None, "tool_calls": [CALL]}), ""),
    "tool calls without ids": (said({"content": None, "tool_calls": [CALL | {"id": None}]}), ""),
    "usage in whole floats": (said({"content": "hi"}, usage={"prompt_tokens": 30.0, "completion_tokens": 7.0}), "hi"),
    "usage with more details": (said({"content": "hi"}, usage=BILL | {"cost": 0.1, "queue_time": 0.02}), "hi"),
    "usage with null details": (said({"content": "hi"}, usage=BILL | {"prompt_tokens_details": None}), "hi"),
    "a byte order mark": (b"\xef\xbb\xbf" + said({"content": "hi"}), "hi"),
    "white space that keeps the line open": (b"\n\n  \n" + said({"content": "hi"}), "hi"),
    "half a surrogate pair": (said({"content": "h\ud83d"}), "h\ufffd"),
    "a stream that nobody asked for": (streamed(DELTA, LAST, "data: [DONE]"), "hi"),
    "a stream with comments": (streamed(": keep-alive", DELTA, ": keep-alive", LAST, "data:[DONE]"), "hi"),
    "a stream without its done mark": (streamed(DELTA, LAST), "hi"),
}

FAILED: dict[str, tuple[bytes, str, Usage | None]] = {
    "no choices": (json.dumps({"choices": [], "usage": BILL}).encode(), "unparsable", BILLED),
    "null choices": (json.dumps({"choices": None, "usage": BILL}).encode(), "unparsable", BILLED),
    "a null message": (said(None), "unparsable", BILLED),
    "an error with status 200": (b'{"error": {"message": "overloaded", "code": 529}}', "server_error", None),
    "a page of HTML": (b"<html><body>Bad gateway</body></html>", "unparsable", None),
    "nothing": (b"", "unparsable", None),
    "null": (b"null", "unparsable", None),
    "a stream that breaks off": (streamed(DELTA), "unparsable", None),
}


@pytest.mark.parametrize(("body", "content"), UNDERSTOOD.values(), ids=UNDERSTOOD.keys())
async def test_an_odd_reply_is_understood_and_metered(caller: Caller, body: bytes, content: str) -> None:
    with OpenAIServer([Reply(raw=body)]) as server:
        exchange = await caller.send(caller.config(server))
    assert (exchange.content, exchange.usage) == (content, BILLED)
    if b'"tool_calls"' in body:
        [call] = exchange.tool_calls
        assert (call.name, json.loads(call.arguments), exchange.finish_reason) == ("plan", {"a": 1}, "tool_calls")
        assert call.id


@pytest.mark.parametrize(("body", "kind", "billed"), FAILED.values(), ids=FAILED.keys())
async def test_a_reply_that_is_none_fails_clearly_and_its_bill_is_known(
    caller: Caller, body: bytes, kind: str, billed: Usage | None
) -> None:
    with OpenAIServer([Reply(raw=body)]) as server:
        failure: CallFailed = await caller.failure(caller.config(server))
    assert (failure.kind, failure.billed) == (kind, billed)
    assert failure.may_be_billed is (billed is None and kind == "unparsable")
