"""A model that follows a script, and a toolbox that remembers: an `Ask` is a plain function, so is this."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from backend.agents.desk import Desk
from backend.agents.prompt import installed
from backend.domain.config import RoleConfig
from backend.domain.model import Message, ModelReply, ModelRequest, ToolCall, Usage
from backend.domain.ports import Observation
from backend.domain.role import Role


def said(*calls: tuple[str, Any], content: str = "", finish: Any = None) -> ModelReply:
    """A reply with tool calls; arguments that are text are sent as they are."""
    made = tuple(
        ToolCall(f"id{at}", name, given if isinstance(given, str) else json.dumps(given))
        for at, (name, given) in enumerate(calls)
    )
    reason = finish or ("tool_calls" if calls else "stop")
    return ModelReply(content, made, reason, Usage(100, 10), "scripted", "scripted-1", Decimal("0.001"))


class Script:
    """Gives its replies one after another, the last one for ever, and keeps the requests."""

    def __init__(self, *replies: ModelReply) -> None:
        self.replies = replies
        self.requests: list[ModelRequest] = []

    async def __call__(self, request: ModelRequest) -> ModelReply:
        """Answer one request."""
        check_protocol(request.messages)
        self.requests.append(request)
        return self.replies[min(len(self.requests), len(self.replies)) - 1]

    def desk(self, role: Role = Role.DEVELOPER, **more: Any) -> Desk:
        """A desk with this model."""
        config = more.pop("config", RoleConfig())
        return Desk(role=role, ask=self, config=config, prompts=installed(), **more)


class Bench:
    """A toolbox whose observations come from a function of name and arguments."""

    def __init__(self, see: Callable[[str, Mapping[str, Any]], Observation | str] = lambda name, given: "ok") -> None:
        self.see = see
        self.calls: list[tuple[str, Mapping[str, Any]]] = []
        self.diff = "+ a line"

    async def call(self, name: str, arguments: Mapping[str, Any]) -> Observation:
        """Run a tool."""
        self.calls.append((name, arguments))
        seen = self.see(name, arguments)
        return Observation(seen) if isinstance(seen, str) else seen

    async def pending_diff(self) -> str:
        """The diff."""
        return self.diff


def check_protocol(messages: tuple[Message, ...]) -> None:
    """What every Chat Completions server insists on: each tool call is answered once, right after it was made."""
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            waiting.remove(message["tool_call_id"])
            continue
        assert not waiting, f"calls without an answer: {waiting}"
        waiting = [call["id"] for call in message.get("tool_calls", ())]
        assert len(set(waiting)) == len(waiting)
    assert not waiting, f"calls without an answer: {waiting}"
