"""Endpoints that speak the OpenAI protocol, called through langchain-openai with its own retries off."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx2
from pydantic import SecretStr

from backend.adapters.llm import completion, failures
from backend.adapters.llm.chat_models import langchain_message, new_model
from backend.adapters.llm.dialect import Dialect
from backend.adapters.llm.wire import LARGEST_REPLY, BoundedClient, Capture, TooLarge, capturing, usage_in
from backend.domain.config import OPENAI_URL, ProviderConfig
from backend.domain.model import CallFailed, Choice, FailureKind, ModelRequest, Position, Usage
from backend.domain.words import Token

if TYPE_CHECKING:
    from langchain_openai.chat_models.base import BaseChatOpenAI

OnToken = Callable[[Token], Awaitable[None]]
Key = Callable[[str], SecretStr | None]
"""Reads a provider's key by the name of its environment variable."""

_MODELS_KEPT = 256
_LESSONS = 4
"""Times that one call is sent while the endpoint refuses parameters."""
_CONNECT_SECONDS = 10.0
_SHORTEST_KEY = 8
"""What is shorter is no key worth hiding, and would hide words."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What an endpoint answered: the reply, and its bill where it names one."""

    completion: completion.Completion
    usage: Usage | None


class OpenAIProviders:
    """Calls any number of OpenAI-compatible endpoints over one HTTP client; belongs to one event loop."""

    def __init__(self, key: Key, *, largest_reply: int = LARGEST_REPLY) -> None:
        self._key = key
        self._largest = largest_reply
        self._client: BoundedClient | None = None
        self._models: OrderedDict[tuple[str, str, str], BaseChatOpenAI] = OrderedDict()
        self._dialects: dict[tuple[str, str], Dialect] = {}

    async def call(
        self,
        choice: Choice,
        provider: ProviderConfig,
        request: ModelRequest,
        position: Position,
        on_token: OnToken | None = None,
    ) -> Heard:
        """Make one HTTP call (two where the endpoint first refused a parameter); raises `CallFailed`."""
        base_url = (provider.base_url or OPENAI_URL).rstrip("/")
        key = self._key_of(choice, provider)
        if len(self._dialects) > 10 * _MODELS_KEPT:
            self._dialects.clear()
        dialect = self._dialects.setdefault((base_url, choice.model), Dialect.of(choice.model, base_url))
        model = self._model(base_url, key, choice)
        headers = {"X-Client-Request-Id": request_id(request, position)}
        for _ in range(_LESSONS):
            listener = None if on_token is None or not dialect.streams else _Listener(on_token, key)
            options = _options(choice, request, dialect) | {"extra_headers": headers}
            if listener is not None:
                options["stream_usage"] = dialect.stream_usage
            capture = Capture(limit=self._largest)
            raised = await _send(model, request, options, capture, listener)
            _scrub(capture, key)
            if not dialect.learn(capture.status, failures.error_in(bytes(capture.body))[0].lower()):
                break
        heard = _heard(capture, raised, choice, base_url)
        if heard.usage is None:
            dialect.metered(streamed=listener is not None)
        return heard

    async def close(self) -> None:
        """Close the HTTP client; the next call opens a new one."""
        client, self._client = self._client, None
        self._models.clear()
        if client is not None:
            await client.aclose()

    def _key_of(self, choice: Choice, provider: ProviderConfig) -> str:
        if provider.key_variable is None:
            return "none"
        key = self._key(provider.key_variable)
        if key is None or not key.get_secret_value():
            raise CallFailed(
                "refused", f"The provider {choice.provider} needs a key: set {provider.key_variable} and start again."
            )
        return key.get_secret_value()

    def _model(self, base_url: str, key: str, choice: Choice) -> BaseChatOpenAI:
        known = (base_url, key, choice.model)
        if known not in self._models:
            if self._client is None:
                self._client = BoundedClient()
            self._models[known] = new_model(base_url, key, choice.model, self._client)
            if len(self._models) > _MODELS_KEPT:
                self._models.popitem(last=False)
        self._models.move_to_end(known)
        return self._models[known]


def request_id(request: ModelRequest, position: Position) -> str:
    """Name the call to the provider, for its support and for tests: product/role/node/task/visit/ordinal."""
    task = "-" if position.task_key is None else quote(position.task_key, safe="")
    return f"company/{request.role.value}/{quote(position.node, safe='')}/{task}/{position.visit}/{position.ordinal}"


def _options(choice: Choice, request: ModelRequest, dialect: Dialect) -> dict[str, Any]:
    options: dict[str, Any] = {dialect.tokens: choice.max_output_tokens}
    if choice.temperature is not None and dialect.temperature:
        options["temperature"] = choice.temperature
    if request.tools:
        options["tools"] = list(request.tools)
        if request.tool_choice is not None:
            options["tool_choice"] = request.tool_choice
    connect = min(_CONNECT_SECONDS, choice.timeout_seconds)
    options["timeout"] = httpx2.Timeout(choice.timeout_seconds, connect=connect)
    return options


async def _send(
    model: BaseChatOpenAI,
    request: ModelRequest,
    options: dict[str, Any],
    capture: Capture,
    listener: _Listener | None,
) -> BaseException | None:
    """Send and fill the capture; return what the client raised, which the capture explains."""
    from openai import OpenAIError

    messages = [langchain_message(message) for message in request.messages]
    token = capturing.set(capture)
    try:
        async with asyncio.timeout(options["timeout"].read):
            if listener is None:
                await model.ainvoke(messages, **options)
            else:
                async with aclosing(model.astream(messages, **options)) as stream:  # type: ignore[type-var] # it is an async generator
                    async for chunk in stream:
                        await listener.hear(chunk)
                await listener.end()
    except (OpenAIError, httpx2.HTTPError, TooLarge, TimeoutError, ValueError, TypeError) as failure:
        return failure if listener is None else listener.own(failure)
    except (LookupError, AttributeError, RecursionError) as unread:
        # The library could not make sense of the body; the capture is judged by our own reading.
        return unread if listener is None else listener.own(unread)
    finally:
        capturing.reset(token)
    return None


class _Listener:
    """Passes tokens on without the key that an endpoint may echo, and keeps apart what the listener itself raises."""

    def __init__(self, on_token: OnToken, key: str) -> None:
        self._on_token, self._key = on_token, key
        self._held = ""
        self._tool: str | None = None
        self._talking = False

    async def hear(self, chunk: Any) -> None:
        """Take in what arrived: text, and parts of tool calls, of which the first names the tool."""
        if chunk.text:
            await self._pass(chunk.text, None)
        for part in getattr(chunk, "tool_call_chunks", ()):
            if part.get("name"):
                await self.end()
                self._tool = part["name"]
            await self._pass(part.get("args") or "", self._tool or "")

    async def end(self) -> None:
        """Pass on what was held back."""
        held, self._held = self._held, ""
        await self._tell(held)

    async def _pass(self, text: str, tool: str | None) -> None:
        if tool != self._tool:
            await self.end()
            self._tool = tool
        if len(self._key) < _SHORTEST_KEY:
            await self._tell(text)
            return
        known = (self._held + text).replace(self._key, "[key]")
        # What may be the beginning of the key waits for what follows.
        half = next(n for n in range(min(len(known), len(self._key) - 1), -1, -1) if known.endswith(self._key[:n]))
        self._held = known[len(known) - half :]
        await self._tell(known[: len(known) - half])

    async def _tell(self, text: str) -> None:
        if text:
            self._talking = True
            await self._on_token(Token(text, self._tool))
            self._talking = False

    def own(self, failure: Exception) -> Exception:
        if self._talking and not isinstance(failure, TimeoutError):
            raise failure
        return failure


def _heard(capture: Capture, raised: BaseException | None, choice: Choice, base_url: str) -> Heard:
    where = f"The model {choice.model} of provider {choice.provider}"
    if capture.status is not None and capture.status >= 300:
        raise failures.of_status(capture, where=where, now=datetime.now(UTC))
    if (broken := _broken(raised)) is not None:
        kind, why = broken
        if kind == "connection" and not capture.sent:
            why = f"could not be reached at {base_url}: start it, or name another in models.providers"
        billed = usage_in(bytes(capture.body))
        unknown = capture.sent and billed is None
        raise CallFailed(kind, f"{where} {why}.", billed=billed, may_be_billed=unknown) from raised
    if capture.status is None and raised is not None:
        raise CallFailed("refused", f"{where} was not asked, since the request cannot be written: {raised}") from raised
    return _understood(bytes(capture.body), where)


def _understood(body: bytes, where: str) -> Heard:
    usage = usage_in(body)
    try:
        reply = completion.read(body)
    except completion.Unreadable as unreadable:
        message, code = failures.error_in(body) if b'"error"' in body else ("", None)
        if message and code is not None and code.isdigit():
            kind = failures.kind_of(int(code), code)
            raise CallFailed(kind, f"{where} answered with an error: {message}.", billed=usage) from unreadable
        raise CallFailed(
            "unparsable",
            f"{where} sent a reply that cannot be read: {unreadable}.",
            billed=usage,
            may_be_billed=usage is None,
        ) from unreadable
    return Heard(reply, usage)


def _broken(raised: BaseException | None) -> tuple[FailureKind, str] | None:
    seen: BaseException | None = raised
    while seen is not None:
        if isinstance(seen, TooLarge):
            return "unparsable", "sent a reply without end"
        if isinstance(seen, TimeoutError | httpx2.TimeoutException):
            return "timeout", "did not answer in time"
        if isinstance(seen, httpx2.TransportError):
            return "connection", f"broke the connection off ({type(seen).__name__})"
        seen = seen.__cause__
    return None


def _scrub(capture: Capture, key: str) -> None:
    """Take the key out of a body, so that an endpoint that echoes it cannot put it into logs or the database."""
    if len(key) >= _SHORTEST_KEY:
        capture.body = bytearray(bytes(capture.body).replace(key.encode(), b"[key]"))
        capture.headers = {name: value.replace(key, "[key]") for name, value in capture.headers.items()}
