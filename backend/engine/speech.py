"""What the model of one call says, told to live followers a few times a second; no call ever waits for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from backend.domain.words import Passage, Token

Say = Callable[[bytes], Awaitable[bool]]
"""Tells words to whoever listens; returns whether anybody did, and never raises."""

TELL_SECONDS = 0.1
UNHEARD_SECONDS = 1.0
"""How often it is tried while nobody listens."""
LARGEST = 32_000
"""Characters that are told at once; of what has piled up, the end."""


class Speech:
    """Gathers the tokens of one call and tells them with what they belong to, until the call is over."""

    def __init__(self, say: Say, about: Mapping[str, Any]) -> None:
        self._say, self._about = say, about
        self._over = asyncio.Event()
        self._passage = Passage()
        self._left: list[tuple[str | None, str]] = []
        self._telling: asyncio.Task[None] | None = None

    async def hear(self, token: Token) -> None:
        """Take in what arrived; see `backend.adapters.llm.providers.OnToken`."""
        if token.tool != self._passage.tool:
            self._left.append((self._passage.tool, self._passage.take(whole=True)))
            self._passage = Passage(token.tool)
        self._passage.add(token.text)
        if self._telling is None:
            self._telling = asyncio.create_task(self._tell_on())

    def end(self) -> None:
        """The call is over: what is left is told without anybody waiting for it."""
        self._over.set()

    async def _tell_on(self) -> None:
        heard = True
        while not self._over.is_set():
            try:
                await asyncio.wait_for(self._over.wait(), TELL_SECONDS if heard else UNHEARD_SECONDS)
            except TimeoutError:
                heard = await self._tell(whole=False)
        await self._tell(whole=True)

    async def _tell(self, *, whole: bool) -> bool:
        parts = [*self._left, (self._passage.tool, self._passage.take(whole=whole))]
        self._left.clear()
        heard = True
        for tool, text in parts:
            if text:
                told = {"type": "tokens", **self._about, "tool": tool, "text": text[-LARGEST:]}
                heard = await self._say(json.dumps(told, ensure_ascii=False).encode())
        return heard
