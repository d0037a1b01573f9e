"""What the tests of the model gateway share: a configuration that points at a loopback endpoint, and one call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import SecretStr

from backend.adapters.llm.gateway import Gateway
from backend.domain.config import RunConfig
from backend.domain.model import CallFailed, Exchange, Message, ModelRequest, Position
from backend.domain.model_choice import choices
from backend.domain.patch import merge
from backend.domain.role import Role
from tests.openai_server import OpenAIServer

SECRET = "sk-canary-0123456789abcdef"
MESSAGES: tuple[Message, ...] = (
    {"role": "system", "content": "You are the PM."},
    {"role": "user", "content": "Plan this."},
)


@dataclass
class Caller:
    """Sends one request through a gateway to a server, as the journal does."""

    gateway: Gateway

    def config(self, server: OpenAIServer, *patches: dict[str, Any], **provider: Any) -> RunConfig:
        """Settings that use the server for every role."""
        endpoint = {"base_url": server.base_url, "timeout_seconds": 60.0} | provider
        return merge({"models": {"default": "gpt-4o", "provider": "loop", "providers": {"loop": endpoint}}}, *patches)

    async def send(self, config: RunConfig, *, position: Position | None = None, **changed: Any) -> Exchange:
        """Send a request of the PM; `on_token` asks for a stream."""
        on_token = changed.pop("on_token", None)
        request = ModelRequest(**({"role": Role.PM, "messages": MESSAGES} | changed))
        at = position or Position("plan", 1, 1, None)
        return await self.gateway.send(choices(config, request)[0], request, at, config, on_token)

    async def failure(self, config: RunConfig, **changed: Any) -> CallFailed:
        """Send a request that must fail."""
        with pytest.raises(CallFailed) as caught:
            await self.send(config, **changed)
        return caught.value


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    """A gateway that reads small replies only and knows the key of one variable."""
    keys = {"CANARY_API_KEY": SecretStr(SECRET)}
    gateway = Gateway(key=keys.get, largest_reply=300_000)
    yield Caller(gateway)
    await gateway.close()
