"""Endpoints that speak the OpenAI protocol, called through langchain-openai with its own retries off."""

from __future__ import annotations

import asyncio
import json
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx2
from pydantic import SecretStr

from backend.adapters.llm import completion, failures
from backend.adapters.llm.wire import LARGEST_REPLY, BoundedClient, Capture, TooLarge, capturing, usage_in
from backend.domain.config import OPENAI_URL, ProviderConfig
from backend.domain.model import CallFailed, Choice, FailureKind, Message, ModelRequest, Position, Usage

if TYPE_CHECKING:
    from langchain_openai.chat_models.base import BaseChatOpenAI

OnToken = Callable[[str], Awaitable[None]]
Key = Callable[[str], SecretStr | None]
"""Reads a provider's key by the name of its environment variable."""

_REASONING = re.compile(r"^(o\d|gpt-5(?!-chat))")
_MODELS_KEPT = 256
_CONNECT_SECONDS = 10.0


@dataclass(slots=True)
class Dialect:
    """What a model of an endpoint accepts, begun from its name and corrected by the endpoint's own refusals."""

    tokens: str
    temperature: bool = True
    stream_usage: bool = True

    @classmethod
    def of(cls, model: str, base_url: str) -> Dialect:
        """Guess the dialect: OpenAI's own address and reasoning models want `max_completion_tokens`."""
        reasoning = _REASONING.match(model.rpartition("/")[2]) is not None
        modern = reasoning or base_url.startswith(OPENAI_URL)
        return cls(tokens="max_completion_tokens" if modern else "max_tokens", temperature=not reasoning)

    def learn(self, status: int | None, complaint: str) -> bool:
        """Take up what a refusal says is unsupported; True when the request is worth sending once more."""
        if status not in (400, 422) or not re.search(r"support|unknown|unrecognized|extra|not permitted", complaint):
            return False
        if self.temperature and "temperature" in complaint:
            self.temperature = False
        elif self.stream_usage and "stream_options" in complaint:
            self.stream_usage = False
        elif self.tokens == "max_tokens" and "max_tokens" in complaint:
            self.tokens = "max_completion_tokens"
        elif self.tokens == "max_completion_tokens" and "max_completion_tokens" in complaint:
            self.tokens = "max_tokens"
        else:
            return False
        return True


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
        while True:
            options = _options(choice, request, dialect) | {"extra_headers": headers}
            capture = Capture(limit=self._largest)
            raised = await _send(model, request, options, capture, choice, dialect, on_token)
            _scrub(capture, key)
            if not dialect.learn(capture.status, failures.error_in(bytes(capture.body))[0].lower()):
                return _heard(capture, raised, choice)

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
            self._models[known] = self._new_model(base_url, key, choice.model)
            if len(self._models) > _MODELS_KEPT:
                self._models.popitem(last=False)
        self._models.move_to_end(known)
        return self._models[known]

    def _new_model(self, base_url: str, key: str, name: str) -> BaseChatOpenAI:
        from langchain_openai.chat_models.base import BaseChatOpenAI, ChatOpenAI  # takes a second; not for --help

        if self._client is None:
            self._client = BoundedClient()
        modern = Dialect.of(name, base_url).tokens == "max_completion_tokens"
        kind: type[BaseChatOpenAI] = ChatOpenAI if modern else BaseChatOpenAI
        return kind(
            model=name,
            base_url=base_url,
            api_key=SecretStr(key),
            max_retries=0,
            http_async_client=self._client,
            use_responses_api=False,
            stream_chunk_timeout=None,
            temperature=None,
            cache=False,
        )


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
    choice: Choice,
    dialect: Dialect,
    on_token: OnToken | None,
) -> BaseException | None:
    """Send and fill the capture; return what the client raised, which the capture explains."""
    from openai import OpenAIError

    messages = [_message(message) for message in request.messages]
    token = capturing.set(capture)
    try:
        async with asyncio.timeout(choice.timeout_seconds):
            if on_token is None:
                await model.ainvoke(messages, **options)
            else:
                async for chunk in model.astream(messages, stream_usage=dialect.stream_usage, **options):
                    if chunk.text:
                        await on_token(chunk.text)
    except (OpenAIError, httpx2.HTTPError, TooLarge, TimeoutError) as failure:
        return failure
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as unread:
        # The library could not make sense of the body; the capture is judged by our own reading.
        return unread
    finally:
        capturing.reset(token)
    return None


def _message(message: Message) -> Any:
    """A message as langchain takes it; only tool calls need care, since it refuses those that are no JSON object."""
    if not message.get("tool_calls"):
        return dict(message)
    from langchain_core.messages import AIMessage

    good, broken = [], []
    for call in message["tool_calls"]:
        name, said = call["function"]["name"], call["function"]["arguments"]
        arguments = _object(said)
        if arguments is not None:
            good.append({"name": name, "args": arguments, "id": call["id"], "type": "tool_call"})
        else:
            broken.append({"name": name, "args": said, "id": call["id"], "type": "invalid_tool_call", "error": None})
    return AIMessage(content=message.get("content") or "", tool_calls=good, invalid_tool_calls=broken)


def _object(text: str) -> dict[str, Any] | None:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _heard(capture: Capture, raised: BaseException | None, choice: Choice) -> Heard:
    where = f"The model {choice.model} of provider {choice.provider}"
    if capture.status is not None and capture.status >= 300:
        raise failures.of_status(capture, where=where, now=datetime.now(UTC))
    if (broken := _broken(raised)) is not None:
        kind, why = broken
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
            return "connection", f"broke the connection off or could not be reached ({type(seen).__name__})"
        seen = seen.__cause__
    return None


def _scrub(capture: Capture, key: str) -> None:
    """Take the key out of a body, so that an endpoint that echoes it cannot put it into logs or the database."""
    if len(key) >= 8:
        capture.body = bytearray(bytes(capture.body).replace(key.encode(), b"[key]"))
        capture.headers = {name: value.replace(key, "[key]") for name, value in capture.headers.items()}
