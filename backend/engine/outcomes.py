"""What becomes of a try at a model call: how it is booked, kept, answered again and told of; pure functions."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from decimal import Decimal
from typing import Any

from backend.adapters.db.calls import Attempt, Outcome
from backend.adapters.db.projection import mended
from backend.adapters.llm.prices import price
from backend.domain.config import RunConfig
from backend.domain.model import CallFailed, Choice, Exchange, Message, ModelReply, ModelRequest, Quote, ToolCall, Usage
from backend.domain.ports import StepFailed
from backend.errors import Unavailable

_MARKS = frozenset({"usage_estimated", "ceiling_booked", "recorded_cost_usd"})
"""What the gateway says of a reply beside it, and people want to find again."""


def request_hash(request: ModelRequest) -> str:
    """The sha256 of what a request asks, whoever answers it.

    The contents of tool messages are left out: they follow from earlier replies, and differ in timings when tools run
    again after a crash.
    """
    messages = [
        {key: value for key, value in message.items() if key != "content" or message.get("role") != "tool"}
        for message in request.messages
    ]
    asked = {
        "role": str(request.role),
        "messages": messages,
        "tools": request.tools,
        "tool_choice": request.tool_choice,
        "prompt_hash": request.prompt_hash,
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def replayed_from(earlier: Any, hashed: str) -> ModelReply | None:
    """The reply that a visit which ran before has in the journal; None where it asked for something else."""
    for known, response, provider, model in json.loads(earlier["done"]) if earlier and earlier["done"] else ():
        if known == hashed:
            return reply_of(response, provider, model)
    return None


def response_of(exchange: Exchange) -> dict[str, Any]:
    """What the journal keeps of an answer."""
    return {
        "content": exchange.content,
        "tool_calls": [asdict(call) for call in exchange.tool_calls],
        "finish_reason": exchange.finish_reason,
        "usage": asdict(exchange.usage),
        "cost_usd": str(exchange.cost_usd),
        "model": exchange.model,
        "marks": {key: value for key, value in exchange.raw.items() if key in _MARKS},
    }


def reply_of(response: Mapping[str, Any], provider: str, model: str) -> ModelReply:
    """The reply that a journalled response is."""
    tool_calls = tuple(ToolCall(**call) for call in response["tool_calls"])
    message: Message = {"role": "assistant", "content": response["content"] or None}
    if tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in tool_calls
        ]
    return ModelReply(
        content=response["content"],
        tool_calls=tool_calls,
        finish_reason=response["finish_reason"],
        usage=Usage(**response["usage"]),
        provider=provider,
        model=response.get("model") or model,
        cost_usd=Decimal(response["cost_usd"]),
        message=message,
    )


def failed(failure: CallFailed, attempt: Attempt, config: RunConfig) -> Outcome:
    """How a try that failed is booked: as billed, at its ceiling where that may have happened, else for nothing."""
    if failure.billed is not None:
        priced = price(config, attempt.choice.provider, attempt.choice.model)
        cost = priced.cost(failure.billed) if priced is not None else Decimal(0)
        return Outcome("failed", failure.billed, cost, error=mended(failure.message))
    if failure.may_be_billed:
        return ceiling(attempt, failure.message)
    return Outcome("failed", error=mended(failure.message))


def longest(choice: Choice, config: RunConfig) -> Decimal:
    """How long a call may take; a played reply takes no time that anybody pays for."""
    provider = config.models.providers[choice.provider]
    return Decimal(0) if provider.kind == "replay" else Decimal(str(provider.timeout_seconds))


def timed(outcome: Outcome, attempt: Attempt, began: float) -> Outcome:
    """The outcome with the time since `began`, on the monotonic clock; a played reply takes none."""
    if not attempt.seconds:
        return outcome
    return replace(outcome, seconds=Decimal(str(round(time.monotonic() - began, 6))))


def ceiling(attempt: Attempt, error: str) -> Outcome:
    """A try that may have been billed: its worst case is booked."""
    quote = attempt.quote
    return Outcome(
        "failed", Usage(quote.input_tokens, quote.max_output_tokens), quote.usd or Decimal(0), error=mended(error)
    )


def at_its_ceiling(exchange: Exchange, quote: Quote) -> Exchange:
    """What is booked of a reply that names no usage where money is limited: an estimate could understate it.

    A model without a price, or for nothing, stays with the estimate.
    """
    if not exchange.raw.get("usage_estimated") or not quote.usd:
        return exchange
    most = Usage(
        max(exchange.usage.input_tokens, quote.input_tokens), max(exchange.usage.output_tokens, quote.max_output_tokens)
    )
    cost = max(exchange.cost_usd, quote.usd)
    return replace(exchange, usage=most, cost_usd=cost, raw={**exchange.raw, "ceiling_booked": True})


def events_of(attempt: Attempt, outcome: Outcome) -> list[tuple[str, dict[str, Any]]]:
    """What is told of a try that ended."""
    usage = outcome.usage
    told = who_asked(attempt) | {
        "tokens_input": usage.input_tokens,
        "tokens_output": usage.output_tokens,
        "cost_usd": str(outcome.cost_usd),
    }
    marks = (outcome.response or {}).get("marks", {})
    if marks.get("usage_estimated"):
        told["usage"] = "ceiling" if marks.get("ceiling_booked") else "estimated"
    if outcome.status == "released":
        return []
    listed = [("model.called", told) if outcome.status == "done" else ("model.failed", told | {"error": outcome.error})]
    over_tokens = usage.total - attempt.quote.tokens
    over_usd = outcome.cost_usd - (attempt.quote.usd or outcome.cost_usd)
    if over_tokens > 0 or over_usd > 0:
        excess = {"tokens": max(0, over_tokens), "usd": str(max(Decimal(0), over_usd))}
        listed.append(("budget.excess_billed", told | excess))
    return listed


def who_asked(attempt: Attempt) -> dict[str, Any]:
    """Where in the run a call belongs, as events say it."""
    position = attempt.position
    return {
        "role": attempt.role,
        "provider": attempt.choice.provider,
        "model": attempt.choice.model,
        "node": position.node,
        "visit": position.visit,
        "task": position.task_key,
        "ordinal": position.ordinal,
        "attempt": attempt.number,
    }


def unpriced_model(attempt: Attempt) -> str | None:
    """What to set where nothing prices the model; None where something does."""
    if attempt.quote.usd is not None:
        return None
    model, provider = attempt.choice.model, attempt.choice.provider
    return f"Nothing prices the model {model} of provider {provider}: set models.prices.{model}."


def given_up(failure: CallFailed, choice: Choice) -> Exception:
    """What the node is told when no choice is left."""
    if failure.kind == "not_covered":
        return StepFailed("not_covered", failure.message)
    return Unavailable(
        f"No model answered; the last try was {choice.model} of {choice.provider}: {failure.message}",
        code="model_unavailable",
    )
