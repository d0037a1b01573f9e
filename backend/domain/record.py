"""Turns the journal of a run into a recording, with captures where a reply quotes an id that differs in every run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend.domain.model import Message
from backend.domain.recording import Recording, request_text

_ID = re.compile(
    r"(?<![0-9A-Za-z_-])(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?=[0-9]*[a-f])(?=[a-f]*[0-9])[0-9a-f]{7,64})"
    r"(?![0-9A-Za-z_-])"
)
"""UUIDs and commit ids: what a model quotes from its request and another run names otherwise."""
_CONTEXT = 24


@dataclass(frozen=True, slots=True)
class Kept:
    """One answered call as the journal keeps it; `request` holds the messages since the visit's previous call."""

    role: str
    node: str
    visit: int
    ordinal: int
    task_key: str | None
    model: str
    request: Mapping[str, Any]
    response: Mapping[str, Any]


def recording_of(title: str, brief: str, calls: Sequence[Kept]) -> Recording:
    """Return the recording of calls in the order they were made; each place may come once."""
    histories: dict[tuple[str, int], list[Message]] = {}
    steps = []
    for call in calls:
        before = histories.get((call.node, call.visit), [])
        messages = [*before[: int(call.request.get("after", 0))], *call.request.get("messages", ())]
        histories[(call.node, call.visit)] = messages
        steps.append(_step(call, messages))
    return Recording.model_validate({"title": title, "brief": brief, "steps": steps})


def _step(call: Kept, messages: Sequence[Message]) -> dict[str, Any]:
    usage = call.response.get("usage", {})
    reply = {
        "content": call.response.get("content") or None,
        "finish_reason": call.response["finish_reason"],
        "tool_calls": [
            {"name": made["name"], "arguments": _arguments(made["arguments"])}
            for made in call.response.get("tool_calls", ())
        ],
    }
    patterns = {f"id{number}": pair for number, pair in enumerate(_captures(reply, request_text(messages)), start=1)}
    for name, (found, _) in patterns.items():
        reply = _replaced(reply, found, "{{" + name + "}}")
    return {
        "role": call.role,
        "node": call.node,
        "visit": call.visit,
        "task": call.task_key,
        "ordinal": call.ordinal,
        "model": call.model,
        "usage": {
            "input": usage.get("input_tokens", 0),
            "output": usage.get("output_tokens", 0),
            "cached": usage.get("cached_tokens", 0),
        },
        "captures": {name: pattern for name, (_, pattern) in patterns.items()},
        "reply": reply,
    }


def _captures(reply: Mapping[str, Any], asked: str) -> Iterator[tuple[str, str]]:
    """Yield (id, pattern) for every id of the reply that a pattern finds again in the request."""
    said = "\n".join(_strings(reply))
    for found in dict.fromkeys(_ID.findall(said)):
        at = asked.rfind(found)
        if at < 0:
            continue
        line = asked[max(0, at - _CONTEXT) : at].rpartition("\n")[2]
        # What stands before must be the same in every run: it begins behind any id that it holds.
        before = _ID.split(line)[-1]
        shape = "[0-9a-f-]{36}" if "-" in found else f"[0-9a-f]{{{len(found)}}}"
        pattern = f"{re.escape(before)}({shape})"
        hits = re.findall(pattern, asked)
        if hits and hits[-1] == found:
            yield found, pattern


def _arguments(text: str) -> dict[str, Any] | str:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return parsed if isinstance(parsed, dict) else text


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _replaced(value: Any, old: str, new: str) -> Any:
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, dict):
        return {key: _replaced(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, old, new) for item in value]
    return value
