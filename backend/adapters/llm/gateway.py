"""The model gateway: one call in, one reply out, priced; it keeps no journal and makes no second attempt.

The engine's journal reserves the quote, sends, settles with the exchange, and decides about retries and fallbacks
(`domain/retry.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from pydantic import SecretStr

from backend.adapters.llm import chat_models
from backend.adapters.llm.circuits import Circuits
from backend.adapters.llm.completion import Completion
from backend.adapters.llm.limits import ProviderLimits
from backend.adapters.llm.prices import price, recorded_cost
from backend.adapters.llm.providers import Key, OnToken, OpenAIProviders
from backend.adapters.llm.replay import Recordings, ReplayProvider
from backend.adapters.llm.wire import LARGEST_REPLY
from backend.domain import estimate
from backend.domain.config import RunConfig
from backend.domain.model import CallFailed, Choice, Exchange, ModelRequest, Position, Quote, Usage
from backend.domain.words import Token
from backend.settings import Settings, provider_key


class Gateway:
    """Calls models for the runs of one process; made once, used in one event loop, closed at the end."""

    def __init__(
        self, settings: Settings | None = None, *, key: Key = provider_key, largest_reply: int = LARGEST_REPLY
    ) -> None:
        redis_url: SecretStr | None = settings.redis_url if settings is not None else None
        self._limits = ProviderLimits(redis_url.get_secret_value() if redis_url is not None else None)
        self.circuits = Circuits()
        self._providers = OpenAIProviders(key, largest_reply=largest_reply)
        self._replay = ReplayProvider(Recordings(settings.home if settings is not None else None))
        self._ratios: dict[tuple[str, str, str], estimate.Ratio] = {}
        self._loaded = False

    def quote(self, choice: Choice, request: ModelRequest, config: RunConfig) -> Quote:
        """Return the worst case of a call, to be reserved before it is made.

        A replayed call is quoted at what it will be booked at: nothing is asked of a provider, so no money is held.
        """
        ratio = self._ratios.get(_who(choice, request), estimate.Ratio())
        tokens = estimate.reserved_input(estimate.input_tokens(request), ratio)
        priced = price(config, choice.provider, choice.model)
        worst = Usage(tokens, choice.max_output_tokens, 0)
        return Quote(
            input_tokens=tokens,
            max_output_tokens=choice.max_output_tokens,
            usd=priced.cost(worst) if priced is not None else None,
            price_version=priced.version if priced is not None else "",
        )

    async def admit(self, choice: Choice, config: RunConfig, quote: Quote) -> None:
        """Return once the provider's rate limits let a call of this size through; may be cancelled at any time.

        Raises `CallFailed` of kind `circuit_open` while the provider is left alone since it did not answer. Waited for
        before anything is reserved, so that a call that only waits holds nobody's budget.
        """
        provider = config.models.providers[choice.provider]
        if provider.kind != "replay":
            if not self._loaded:
                await asyncio.to_thread(chat_models.load)
                self._loaded = True
            await self._limits.wait(provider, quote.tokens)
            self.circuits.admit(choice.provider, provider)

    async def send(
        self,
        choice: Choice,
        request: ModelRequest,
        position: Position,
        config: RunConfig,
        on_token: OnToken | None = None,
    ) -> Exchange:
        """Make one attempt, which was admitted before; raises `CallFailed`.

        `on_token` gets text and tool calls as they are streamed; without it the reply comes whole.
        """
        provider = config.models.providers[choice.provider]
        if provider.kind == "replay":
            began = time.monotonic()
            reply, usage = self._replay.call(choice, provider, request, position)
            if on_token is not None:
                await on_token(Token(reply.content))
                for call in reply.tool_calls:
                    await on_token(Token(call.arguments, call.name))
            marks = {"recorded_cost_usd": recorded_cost(reply.model, usage)}
            return _exchange(choice, config, reply, usage, time.monotonic() - began, marks)
        if config.budget.usd is not None and price(config, choice.provider, choice.model) is None:
            raise CallFailed("refused", unpriced(choice.provider, choice.model))
        began = time.monotonic()
        try:
            heard = await self._providers.call(choice, provider, request, position, on_token)
        except CallFailed as failure:
            self.circuits.failed(provider, failure)
            raise
        self.circuits.answered(provider)
        seconds = time.monotonic() - began
        if heard.usage is None:
            guessed = _guess(request, heard.completion)
            return _exchange(choice, config, heard.completion, guessed, seconds, {"usage_estimated": True})
        self._learn(choice, request, heard.usage)
        return _exchange(choice, config, heard.completion, heard.usage, seconds, {})

    async def close(self) -> None:
        """Close the connections."""
        await self._providers.close()
        await self._limits.close()

    def _learn(self, choice: Choice, request: ModelRequest, billed: Usage) -> None:
        if len(self._ratios) > 10_000:
            self._ratios.clear()
        who = _who(choice, request)
        before = self._ratios.get(who, estimate.Ratio())
        self._ratios[who] = before.after(estimated=estimate.input_tokens(request), billed=billed.input_tokens)


def unpriced(provider: str, model: str) -> str:
    """Say what to set where a money limit meets a model without a price."""
    return (
        f"Nothing prices the model {model} of provider {provider}, so a limit in USD could not be kept: "
        f"set models.prices.{model} (input and output in USD for a million tokens; 0 for a local model)."
    )


def _who(choice: Choice, request: ModelRequest) -> tuple[str, str, str]:
    return choice.provider, choice.model, request.role.value


def _guess(request: ModelRequest, reply: Completion) -> Usage:
    """What a server that sends no usage will have used, by the same estimate that quotes are made with."""
    said = estimate.text_tokens(reply.content)
    said += sum(estimate.text_tokens(call.name + call.arguments) for call in reply.tool_calls)
    return Usage(estimate.input_tokens(request), said, 0)


def _exchange(
    choice: Choice, config: RunConfig, reply: Completion, usage: Usage, seconds: float, marks: Mapping[str, Any]
) -> Exchange:
    priced = price(config, choice.provider, choice.model)
    return Exchange(
        content=reply.content,
        tool_calls=reply.tool_calls,
        finish_reason=reply.finish_reason,
        usage=usage,
        cost_usd=priced.cost(usage) if priced is not None else Decimal(0),
        latency_seconds=seconds,
        model=reply.model or choice.model,
        raw={**reply.raw, **marks},
    )
