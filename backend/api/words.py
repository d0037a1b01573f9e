"""What models say at this moment, between the events of a run; a follower that is slow misses words and no event."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from backend.api.event_logs import Entry
from backend.api.installation import Followers
from backend.api.streams import Streams


@dataclass(frozen=True, slots=True)
class Words:
    """A piece of what a model says, as it is sent; without a number, since it is kept nowhere."""

    data: str
    type: str = "tokens"

    @property
    def frame(self) -> bytes:
        """As a server-sent event without `id`, so that the place to resume from stays that of the last event."""
        return f"event: {self.type}\ndata: {self.data}\n\n".encode()


async def follow(
    streams: Streams, followers: Followers, run_id: UUID, after: int
) -> AsyncIterator[Entry[int] | Words | None]:
    """The events of a run as `Streams.follow` gives them, and between them what its models say."""
    async with aclosing(streams.follow(run_id, after)) as entries, aclosing(followers.words(run_id)) as spoken:  # type: ignore[type-var]  # both are generators
        pending: dict[asyncio.Future[Any], AsyncIterator[Any]] = {
            asyncio.ensure_future(anext(source)): source for source in (entries, spoken)
        }
        try:
            while True:
                done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for ready in done:
                    source = pending.pop(ready)
                    try:
                        item = ready.result()
                    except StopAsyncIteration:
                        if source is entries:
                            return
                        continue
                    yield item if source is entries else Words(item.decode())
                    pending[asyncio.ensure_future(anext(source))] = source
        finally:
            for waiting in pending:
                waiting.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
