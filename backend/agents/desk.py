"""The desk of a role: its model call, its settings, its prompts and a meter of what it used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from backend.domain.config import RoleConfig
from backend.domain.model import Message, ModelReply, ModelRequest
from backend.domain.ports import Ask, Prompts, Toolbox
from backend.domain.role import Role


@dataclass(slots=True)
class Meter:
    """What the model calls of one visit used."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: Decimal = Decimal(0)
    models: list[str] = field(default_factory=list)

    def add(self, reply: ModelReply) -> None:
        """Count one reply."""
        self.calls += 1
        self.input_tokens += reply.usage.input_tokens
        self.output_tokens += reply.usage.output_tokens
        self.usd += reply.cost_usd
        if reply.model not in self.models:
            self.models.append(reply.model)

    def metrics(self) -> dict[str, Any]:
        """Return the figures as plain JSON, for a comment."""
        return {
            "calls": self.calls,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "usd": f"{self.usd:f}",
            "models": list(self.models),
        }


@dataclass(frozen=True, slots=True)
class Desk:
    """What a role works with in one visit of one node. Calls are made one after another."""

    role: Role
    ask: Ask
    config: RoleConfig
    prompts: Prompts
    toolbox: Toolbox | None = None
    steps: int = 40
    task_key: str | None = None
    task_type: str | None = None
    may_ask: bool = False
    meter: Meter = field(default_factory=Meter)

    @property
    def fenced(self) -> bool:
        """Whether the model gets no tools and writes its actions as text."""
        return self.config.edit_format == "fenced"

    async def call(
        self,
        messages: Sequence[Message],
        *,
        prompt_hash: str,
        tools: tuple[dict[str, Any], ...] = (),
        tool_choice: str | dict[str, Any] | None = None,
    ) -> ModelReply:
        """Make one model call and count it."""
        reply = await self.ask(
            ModelRequest(
                role=self.role,
                messages=tuple(messages),
                tools=() if self.fenced else tools,
                tool_choice=None if self.fenced else tool_choice,
                task_key=self.task_key,
                task_type=self.task_type,
                prompt_hash=prompt_hash,
            )
        )
        self.meter.add(reply)
        return reply
