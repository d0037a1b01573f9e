"""Reads the body of a chat completion, whole or streamed, as endpoints really send it; never executes or trusts it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from backend.domain.model import FinishReason, ToolCall


class Unreadable(Exception):
    """The body is no chat completion; the message says why in a clause."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A reply in the company's terms; `raw` is what else the endpoint told of it (id, fingerprint, usage)."""

    content: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason
    model: str | None
    raw: dict[str, Any]


_STREAM = re.compile(rb"\s*(data|event|id|retry|):")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


def read(body: bytes) -> Completion:
    """Read a body; raises `Unreadable`.

    Whether it was streamed shows in itself: some servers answer a request for a stream with a whole completion.
    """
    parsed = fold(body) if _STREAM.match(body) else _json(body)
    if not isinstance(parsed, dict):
        raise Unreadable(f"it is a JSON {type(parsed).__name__}, not an object")
    choices = parsed.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Unreadable("it has no choices")
    message = choices[0].get("message")
    if not isinstance(message, dict):
        raise Unreadable("its first choice has no message")
    calls = _tool_calls(message.get("tool_calls"))
    reason = _FINISH.get(str(choices[0].get("finish_reason")), "other")
    if calls and reason in ("stop", "other"):
        reason = "tool_calls"  # several servers end tool calls with "stop"
    model = parsed.get("model")
    named = model if isinstance(model, str) and model else None
    return Completion(_clean(_content(message)), calls, reason, named, _about(parsed, choices[0]))


def _about(parsed: dict[str, Any], choice: dict[str, Any]) -> dict[str, Any]:
    """What is worth keeping beside the reply, and harmless to keep: short scalars, and the usage as it was sent."""
    told = {key: parsed.get(key) for key in ("id", "model", "created", "system_fingerprint", "service_tier")}
    told["finish_reason"] = choice.get("finish_reason")
    kept: dict[str, Any] = {
        key: said for key, said in told.items() if isinstance(said, str | int) and len(str(said)) <= 200
    }
    usage = parsed.get("usage")
    try:
        if isinstance(usage, dict) and len(json.dumps(usage)) <= 2000:
            kept["usage"] = usage
    except RecursionError:
        pass  # nested beyond sense: nothing worth keeping
    return kept


def fold(body: bytes) -> dict[str, Any]:
    """Fold server-sent events into the completion that they stream; raises `Unreadable` where they break off."""
    whole: dict[str, Any] = {}
    text: list[str] = []
    calls: dict[int, dict[str, Any]] = {}
    reason = None
    for event in _events(body):
        whole |= {key: event[key] for key in ("id", "model", "usage") if event.get(key)}
        if event.get("error"):
            return {"error": event["error"], **whole}
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        delta = choice.get("delta")
        if isinstance(delta, dict):
            text.append(delta["content"] if isinstance(delta.get("content"), str) else "")
            _add_calls(calls, delta.get("tool_calls"))
        reason = choice.get("finish_reason") or reason
    if reason is None:
        raise Unreadable("the stream breaks off before its end")
    message = {"role": "assistant", "content": "".join(text), "tool_calls": [calls[index] for index in sorted(calls)]}
    return {**whole, "choices": [{"index": 0, "message": message, "finish_reason": reason}]}


def _events(body: bytes) -> list[dict[str, Any]]:
    events = []
    for line in body.decode("utf-8", "replace").split("\n"):
        data = line[5:].strip() if line.startswith("data:") else ""
        if data and data != "[DONE]":
            event = _json(data.encode())
            if isinstance(event, dict):
                events.append(event)
    return events


def _add_calls(calls: dict[int, dict[str, Any]], deltas: Any) -> None:
    for delta in deltas if isinstance(deltas, list) else ():
        if not isinstance(delta, dict) or not isinstance(delta.get("function"), dict):
            continue
        index = delta["index"] if isinstance(delta.get("index"), int) else len(calls)
        call = calls.setdefault(index, {"id": None, "type": "function", "function": {"name": "", "arguments": ""}})
        call["id"] = call["id"] or delta.get("id")
        for key in ("name", "arguments"):
            said = delta["function"].get(key)
            call["function"][key] += said if isinstance(said, str) else ""


def _tool_calls(said: Any) -> tuple[ToolCall, ...]:
    calls = []
    for number, call in enumerate(said if isinstance(said, list) else (), start=1):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Unreadable(f"its tool call {number} names no function")
        arguments = function.get("arguments")
        text = arguments if isinstance(arguments, str) else json.dumps(arguments if arguments is not None else {})
        named = call.get("id")
        known = named if isinstance(named, str) and named else f"call_{number}"
        calls.append(ToolCall(_clean(known), _clean(function["name"]), _clean(text)))
    return tuple(calls)


def _clean(text: str) -> str:
    """The text as the database can keep it, so that a reply is the same now and out of the journal."""
    return _UNSTORABLE.sub("\ufffd", text)


def _content(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    if isinstance(content, str):
        return content
    refusal = message.get("refusal")
    return refusal if isinstance(refusal, str) else ""


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as broken:
        raise Unreadable(f"it is not JSON ({len(body)} bytes)") from broken
