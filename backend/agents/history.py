"""The history of a conversation: what is appended, and how it is compacted when it grows towards the window.

Pure and deterministic. Observations (tool messages) go first, oldest first; the journal's hash leaves their contents
out, so compacting them never makes a call that was paid look like another one. The opening (system, task), the last
messages and the messages that are pinned (the last failure, the diff) stay.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from backend.domain.model import Message, ModelReply

OPENING = 2
KEPT = 8
OWN_SHARE = 0.75
"""What everything but observations may take of the room."""
SHARE = 0.6
FILE_CHARACTERS = 100_000
"""About 25,000 tokens of files stay in context."""
LONG = 400


def assistant(reply: ModelReply) -> Message:
    """Return the message that a reply adds; arguments that are no JSON object are emptied: servers refuse them."""
    message: Message = {"role": "assistant", "content": reply.content or None}
    if reply.tool_calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": call.arguments if parse(call.arguments) is not None else "{}",
                },
            }
            for call in reply.tool_calls
        ]
    elif not reply.content:
        message["content"] = "(no words)"
    return message


def numbered(reply: ModelReply, turn: int) -> ModelReply:
    """Return the reply with tool call ids made of its turn, so that they are unique in any history.

    Nine letters and digits, since some servers accept no other form.
    """
    calls = tuple(replace(call, id=f"c{turn:04d}{at:04d}") for at, call in enumerate(reply.tool_calls, 1))
    return replace(reply, tool_calls=calls)


def parse(arguments: str) -> dict[str, Any] | None:
    """Return a tool call's arguments, or None when they are not a JSON object."""
    try:
        found = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def tool_message(call_id: str, content: str) -> Message:
    """Return the message that answers a tool call."""
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def compact(messages: Sequence[Message], *, window_tokens: int, pinned: Collection[str] = ()) -> list[Message]:
    """Return the history so that it fits 60 % of the window (4 characters a token), as far as that is possible.

    `pinned` are ids of tool calls whose observations stay.
    """
    limit = int(window_tokens * 4 * SHARE)
    history = _bound_files(list(messages), pinned)
    for at in range(OPENING, max(OPENING, len(history) - KEPT)):
        if _size(history) <= limit:
            return history
        history[at] = _elided_observation(history[at], pinned)
    for at in range(OPENING, max(OPENING, len(history) - KEPT)):
        # Measured without observations, which may differ when a node runs again; the decision may not.
        if _size(message for message in history if message["role"] != "tool") <= limit * OWN_SHARE:
            return history
        history[at] = _elided_call(history[at])
    return history


def steady(text: str) -> str:
    """Return the text without what differs each time the same thing happens: durations, addresses, scratch paths."""
    text = re.sub(r"\b\d+(?:\.\d+)?\s?(?:s|ms|sec|secs|seconds?)\b", "(time)", text)
    return re.sub(r"0x[0-9a-fA-F]{6,}|/tmp/[^\s:'\"]+", "(address)", text)  # noqa: S108 - a pattern, not a path


def _size(messages: Any) -> int:
    return sum(len(json.dumps(message, ensure_ascii=False)) for message in messages)


def _bound_files(history: list[Message], pinned: Collection[str]) -> list[Message]:
    reads = {call["id"] for message in history for call in message.get("tool_calls", ()) if _name(call) == "read_file"}
    room = FILE_CHARACTERS
    for at in range(len(history) - 1, OPENING - 1, -1):
        if history[at].get("tool_call_id") in reads:
            room -= len(history[at]["content"])
            if room < 0:
                history[at] = _elided_observation(history[at], pinned)
    return history


def _elided_observation(message: Message, pinned: Collection[str]) -> Message:
    if message["role"] != "tool" or message["tool_call_id"] in pinned or len(message["content"]) <= LONG:
        return message
    notice = f"(removed to save room: {len(message['content'])} characters; call the tool again if you need them)"
    return {**message, "content": notice}


def _elided_call(message: Message) -> Message:
    calls = message.get("tool_calls")
    return {**message, "tool_calls": [_shortened(call) for call in calls]} if calls else message


def _shortened(call: dict[str, Any]) -> dict[str, Any]:
    arguments = parse(call["function"]["arguments"]) or {}
    short = {
        name: f"(removed to save room: {len(value)} characters)"
        if isinstance(value, str) and len(value) > LONG
        else value
        for name, value in arguments.items()
    }
    return {**call, "function": {**call["function"], "arguments": json.dumps(short, ensure_ascii=False)}}


def _name(call: dict[str, Any]) -> str:
    return str(call["function"]["name"])
