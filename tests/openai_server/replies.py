"""What the server answers: replies as a model would give them, and every way in which an endpoint goes wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Ending = Literal["whole", "cut", "disconnect", "endless"]


@dataclass(frozen=True)
class Reply:
    """One HTTP answer; `usage` None leaves usage out, as some servers do. Delays are in seconds."""

    content: str | None = ""
    tool_calls: tuple[dict[str, Any], ...] = ()
    finish_reason: str | None = "stop"
    usage: Mapping[str, Any] | None = field(
        default_factory=lambda: {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    )
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    """The body itself instead of a completion."""
    delay: float = 0.0
    ending: Ending = "whole"

    def after(self, seconds: float) -> Reply:
        """The same reply, later."""
        return replace(self, delay=seconds)

    def billed(self, prompt: int, completion: int, cached: int = 0) -> Reply:
        """The same reply with this usage."""
        return replace(
            self,
            usage={
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
                "prompt_tokens_details": {"cached_tokens": cached},
            },
        )

    def unmetered(self) -> Reply:
        """The same reply without usage."""
        return replace(self, usage=None)

    @property
    def message(self) -> dict[str, Any]:
        """The assistant message in the protocol's form."""
        said: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.tool_calls:
            said["tool_calls"] = list(self.tool_calls)
        return said


def text(content: str, *, finish_reason: str = "stop") -> Reply:
    """A plain answer."""
    return Reply(content=content, finish_reason=finish_reason)


def tool_calls(*calls: tuple[str, Mapping[str, Any] | str], content: str | None = None) -> Reply:
    """Calls of tools as (name, arguments); a string is sent as it is, so that it need not be JSON."""
    written = tuple(
        {
            "id": f"call_{number}_{name}",
            "type": "function",
            "function": {"name": name, "arguments": said if isinstance(said, str) else json.dumps(said)},
        }
        for number, (name, said) in enumerate(calls, start=1)
    )
    return Reply(content=content, tool_calls=written, finish_reason="tool_calls")


def error(status: int, message: str = "scripted error", *, retry_after: str | float | None = None) -> Reply:
    """An error in the protocol's form."""
    body = {"error": {"message": message, "type": "scripted", "param": None, "code": None}}
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return json_body(body, status=status, headers=headers)


def json_body(body: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """Any JSON at all."""
    return Reply(status=status, raw=json.dumps(body).encode(), headers=headers or {})


def invalid_json(usage: bool = False) -> Reply:
    """A body that is not JSON; with `usage`, one that breaks off after it said what was billed."""
    said = b'{"id": "x", "usage": {"prompt_tokens": 70, "completion_tokens": 7}, "choices": [{"mess'
    return Reply(raw=said if usage else b"<html>not json</html>")


def wrong_schema(usage: Mapping[str, Any] | None = None) -> Reply:
    """Valid JSON that is no completion."""
    body: dict[str, Any] = {"id": "x", "object": "chat.completion", "choices": "none"}
    return json_body(body | ({"usage": dict(usage)} if usage else {}))


def empty_choices() -> Reply:
    """A completion without a choice, which is billed all the same."""
    return json_body({"id": "x", "choices": [], "usage": {"prompt_tokens": 50, "completion_tokens": 0}})


def cut(reply: Reply | None = None) -> Reply:
    """A reply whose second half never comes: the connection closes before the announced length."""
    return replace(reply or text("half of this is lost"), ending="cut")


def disconnect(delay: float = 0.0) -> Reply:
    """The connection closes without a byte."""
    return Reply(ending="disconnect", delay=delay)


def endless() -> Reply:
    """A body that never ends."""
    return Reply(ending="endless")


def silent(seconds: float = 60.0) -> Reply:
    """An answer that comes too late for any sensible timeout; the server drops it when it is closed."""
    return text("too late").after(seconds)


def completion(reply: Reply, model: str) -> dict[str, Any]:
    """The JSON of a whole completion."""
    body: dict[str, Any] = {
        "id": "chatcmpl-scripted",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": model,
        "choices": [{"index": 0, "message": reply.message, "finish_reason": reply.finish_reason, "logprobs": None}],
    }
    return body | ({"usage": dict(reply.usage)} if reply.usage is not None else {})


def chunks(reply: Reply, model: str, *, with_usage: bool) -> Sequence[bytes]:
    """The server-sent events of a streamed completion, a word a chunk."""
    head = {"id": "chatcmpl-scripted", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": model}
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": word} for word in (reply.content or "").splitlines(keepends=True) for word in _words(word)]
    for index, call in enumerate(reply.tool_calls):
        said = call["function"]["arguments"]
        half = len(said) // 2
        deltas.append({"tool_calls": [call | {"index": index, "function": call["function"] | {"arguments": ""}}]})
        deltas += [
            {"tool_calls": [{"index": index, "function": {"arguments": part}}]} for part in (said[:half], said[half:])
        ]
    parts = [head | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    parts.append(head | {"choices": [{"index": 0, "delta": {}, "finish_reason": reply.finish_reason}]})
    if with_usage and reply.usage is not None:
        parts.append(head | {"choices": [], "usage": dict(reply.usage)})
    return [*(b"data: " + json.dumps(part).encode() + b"\n\n" for part in parts), b"data: [DONE]\n\n"]


def _words(line: str) -> list[str]:
    return [word for word in line.replace(" ", " \x1f").split("\x1f") if word]
