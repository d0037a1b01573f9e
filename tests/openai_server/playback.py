"""Plays a recording over HTTP: the gateway names each call's position in its `X-Client-Request-Id` header."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

from backend.domain.recording import Recording
from tests.openai_server.replies import Reply, error, tool_calls

Place = tuple[str, str, str | None, int, int]
"""Role, node, task key, visit, ordinal."""


def position_of(headers: Mapping[str, str]) -> Place | None:
    """Read the position of a call from its headers; None where it has none."""
    parts = headers.get("x-client-request-id", "").split("/")
    if len(parts) < 6:
        return None
    role, node, task, visit, ordinal = parts[1:6]
    return role, unquote(node), None if task == "-" else unquote(task), int(visit), int(ordinal)


def recorded(recording: Recording) -> Callable[[dict[str, Any], Mapping[str, str]], Reply]:
    """A script that answers every call with its recorded step, usage included."""

    def script(body: dict[str, Any], headers: Mapping[str, str]) -> Reply:
        place = position_of(headers)
        if place is None:
            return error(400, "The request does not say which call it is (X-Client-Request-Id).")
        step = recording.find(*place)
        if step is None:
            return error(404, recording.missing(*place))
        said = step.reply_to(body["messages"])
        calls = [
            (call.name, call.arguments if isinstance(call.arguments, str) else json.dumps(call.arguments))
            for call in said.tool_calls
        ]
        reply = tool_calls(*calls, content=said.content)
        usage = step.usage
        return replace(reply, finish_reason=said.finish_reason).billed(usage.input, usage.output, usage.cached)

    return script
