"""How many tokens a request will probably be billed: characters / 4, corrected by what the model billed before."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend.domain.model import Message, ModelRequest

PER_MESSAGE = 4
MARGIN = 1.2
"""What a reservation holds above the estimate."""
_LOWEST, _HIGHEST = 0.25, 8.0
_WEIGHT = 0.3


@dataclass(frozen=True, slots=True)
class Ratio:
    """Billed over estimated input tokens of a model and role, as a running mean; 1 until something was billed."""

    value: float = 1.0
    seen: int = 0

    def after(self, *, estimated: int, billed: int) -> Ratio:
        """Return the ratio with one more billed call; absurd bills move it only so far."""
        if estimated <= 0 or billed <= 0:
            return self
        now = min(_HIGHEST, max(_LOWEST, billed / estimated))
        value = now if self.seen == 0 else self.value + _WEIGHT * (now - self.value)
        return Ratio(value=value, seen=self.seen + 1)


def input_tokens(request: ModelRequest) -> int:
    """Estimate the input tokens of a request: its messages and the schemas of its tools."""
    tools = sum(text_tokens(json.dumps(tool, ensure_ascii=False)) for tool in request.tools)
    return tools + sum(message_tokens(message) for message in request.messages) + PER_MESSAGE


def message_tokens(message: Message) -> int:
    """Estimate the tokens of one message with its tool calls."""
    return PER_MESSAGE + sum(text_tokens(part) for part in _texts(message))


def text_tokens(text: str) -> int:
    """Estimate the tokens of a text: four ASCII characters to a token, other characters one each."""
    plain = len(text) if text.isascii() else sum(map(str.isascii, text))
    return math.ceil(plain / 4) + len(text) - plain


def reserved_input(estimated: int, ratio: Ratio) -> int:
    """Return the input tokens to reserve for an estimate."""
    return math.ceil(estimated * ratio.value * MARGIN)


def _texts(message: Mapping[str, Any]) -> Sequence[str]:
    content = message.get("content")
    parts = [content] if isinstance(content, str) else [str(part) for part in content or ()]
    for call in message.get("tool_calls") or ():
        parts += [str(call["function"]["name"]), str(call["function"]["arguments"])]
    return parts
