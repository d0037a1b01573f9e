"""A model call as the company speaks of it: what is asked, what comes back, what it costs.

Messages have the shape of the OpenAI Chat Completions API (plain JSON), which every provider behind the gateway speaks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from backend.domain.role import Role

Message = dict[str, Any]
"""`{"role", "content", "tool_calls"?, "tool_call_id"?}`; roles are system, user, assistant and tool."""

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "other"]


@dataclass(frozen=True, slots=True)
class Opening:
    """The first messages of a conversation and the hash of the prompt that made them."""

    messages: tuple[Message, ...]
    prompt_hash: str


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One question to a role's model.

    `tools` and `tool_choice` are in OpenAI's form. `prompt_hash` is the sha256 of the prompt files that made it.
    `max_output_tokens` overrides the role's own ceiling downwards.
    """

    role: Role
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    tool_choice: str | dict[str, Any] | None = None
    task_key: str | None = None
    task_type: str | None = None
    prompt_hash: str = ""
    max_output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Billed tokens; `input_tokens` includes the cached ones, `output_tokens` the reasoning ones."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0

    @property
    def total(self) -> int:
        """What counts against a token limit."""
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call as the model wrote it; `arguments` is the raw text, which may not be JSON."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ModelReply:
    """What a model answered; `message` is the assistant message to append to the history."""

    content: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason
    usage: Usage
    provider: str
    model: str
    cost_usd: Decimal
    message: Message = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Position:
    """Where in a run a call stands: the journal's key, and what a recording is matched by; `ordinal` counts from 1."""

    node: str
    visit: int
    ordinal: int
    task_key: str | None


@dataclass(frozen=True, slots=True)
class Choice:
    """A model of a provider with the parameters it is called with, after all configuration is merged."""

    provider: str
    model: str
    temperature: float | None
    max_output_tokens: int
    timeout_seconds: float


@dataclass(frozen=True, slots=True)
class Quote:
    """The worst case of a call, which is reserved before it is made; `usd` is None where nothing prices the model."""

    input_tokens: int
    max_output_tokens: int
    usd: Decimal | None
    price_version: str

    @property
    def tokens(self) -> int:
        """What is reserved against a token limit."""
        return self.input_tokens + self.max_output_tokens


@dataclass(frozen=True, slots=True)
class Exchange:
    """One completed HTTP exchange with a provider: its reply, billed usage and price."""

    content: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason
    usage: Usage
    cost_usd: Decimal
    latency_seconds: float
    model: str
    raw: dict[str, Any]


FailureKind = Literal[
    "timeout",
    "connection",
    "rate_limited",
    "server_error",
    "conflict",
    "refused",
    "unparsable",
    "not_covered",
    "circuit_open",
]


class CallFailed(Exception):
    """One attempt at a provider failed.

    `billed` is what the provider may have charged all the same (None: nothing was; a timeout after sending: unknown, so
    the quote is booked). `retryable` follows from `kind`: timeout, connection, rate_limited, server_error, conflict,
    circuit_open (nothing was sent, since the provider did not answer lately).
    """

    def __init__(
        self,
        kind: FailureKind,
        message: str,
        *,
        retry_after: float | None = None,
        billed: Usage | None = None,
        may_be_billed: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind: FailureKind = kind
        self.message = message
        self.retry_after = retry_after
        self.billed = billed
        self.may_be_billed = may_be_billed

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed when it is sent again."""
        return self.kind in {"timeout", "connection", "rate_limited", "server_error", "conflict", "circuit_open"}
