"""One Redis pub/sub hub and nothing more: a subscription for the process, a queue for each follower, SSE out."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from redis.asyncio import Redis

queues: set[asyncio.Queue[bytes]] = set()


async def hear() -> None:
    redis: Redis = Redis.from_url(os.environ["REDIS_URL"], socket_timeout=None)
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe("bench:hub")
        async for message in pubsub.listen():
            if message["type"] == "message":
                for queue in queues:
                    queue.put_nowait(message["data"])


@asynccontextmanager
async def life(_: FastAPI) -> AsyncIterator[None]:
    listening = asyncio.create_task(hear())
    yield
    listening.cancel()


app = FastAPI(lifespan=life)


@app.get("/events")
async def events() -> StreamingResponse:
    async def frames() -> AsyncIterator[bytes]:
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        queues.add(queue)
        try:
            yield b"retry: 2000\n\n"
            while True:
                yield b"data: " + await queue.get() + b"\n\n"
        finally:
            queues.discard(queue)

    return StreamingResponse(frames(), media_type="text/event-stream")


@app.get("/healthz")
def healthz() -> dict[str, bool]:
    return {"up": True}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PEER_PORT"]), log_level="warning", access_log=False)
