"""langchain-openai's chat models, made so that they take every history and cost little processor time."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from backend.adapters.llm.dialect import Dialect
from backend.adapters.llm.wire import BoundedClient
from backend.domain.model import Message

if TYPE_CHECKING:
    from langchain_openai.chat_models.base import BaseChatOpenAI


def load() -> None:
    """Import the client, for a thread: done in the event loop it would hold up every run of the process for seconds."""
    import langchain_openai.chat_models.base  # noqa: F401 - that it is imported is the point


def new_model(base_url: str, key: str, name: str, client: BoundedClient) -> BaseChatOpenAI:
    """Make the model of an endpoint; its own retries and caches are off, and it speaks Chat Completions only."""
    from langchain_openai.chat_models.base import BaseChatOpenAI, ChatOpenAI  # takes a second; not for --help

    kind: type[BaseChatOpenAI] = ChatOpenAI if Dialect.of(name, base_url).modern else BaseChatOpenAI
    model = kind(
        model=name,
        base_url=base_url,
        api_key=SecretStr(key),
        max_retries=0,
        http_async_client=client,
        use_responses_api=False,
        stream_chunk_timeout=None,
        temperature=None,
        cache=False,
    )
    model.async_client = _Direct(model.async_client)
    return model


def langchain_message(message: Message) -> Any:
    """Return a message as langchain takes it.

    Only tool calls need care: langchain refuses those whose arguments are no JSON object, which models do write.
    """
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


class _Direct:
    """The client's completions, but with messages and tools put into the body as they are.

    The client walks through every message and schema to rename keys that need no renaming: with a history of 20
    messages 60 % of the processor time of a call.
    """

    def __init__(self, completions: Any) -> None:
        self._completions = completions

    @property
    def with_raw_response(self) -> _Direct:
        """The same over the client's raw responses."""
        return _Direct(self._completions.with_raw_response)

    async def create(self, **payload: Any) -> Any:
        """Ask for a completion."""
        body = {key: payload.pop(key) for key in ("messages", "tools") if key in payload}
        return await self._completions.create(
            **payload | {"messages": [], "extra_body": {**(payload.get("extra_body") or {}), **body}}
        )
