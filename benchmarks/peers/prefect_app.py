"""Seven tasks of a Prefect flow, driven in one process beside Prefect's server; FastAPI starts the flows."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import uvicorn
import work
from fastapi import FastAPI
from prefect import flow, task

app = FastAPI()
background: set[asyncio.Task[Any]] = set()


@task(persist_result=False)
async def node(number: int, run: int) -> dict[str, Any]:
    return work.part(number, run)


@flow(persist_result=False)
async def seven(run: int) -> None:
    for number in range(1, work.NODES + 1):
        await node(number, run)


@app.post("/runs/{run}")
async def start(run: int) -> dict[str, bool]:
    driving = asyncio.create_task(seven(run))
    background.add(driving)
    driving.add_done_callback(background.discard)
    return {"taken": True}


@app.get("/healthz")
def healthz() -> dict[str, bool]:
    return {"up": True}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PEER_PORT"]), log_level="warning", access_log=False)
