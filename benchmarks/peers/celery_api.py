"""The chain behind FastAPI: a request sends it and answers with an identity, by which another asks how far it is.

It is sent in the loop: a thread for each request, the usual way, made it no faster.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import celery_app
import uvicorn
from fastapi import FastAPI

app = FastAPI()


@app.post("/runs/{run}")
async def start(run: int) -> dict[str, str]:
    return {"id": celery_app.begin(run)}


@app.get("/runs/{identity}")
def show(identity: str) -> dict[str, str]:
    return {"status": str(celery_app.app.AsyncResult(identity).status)}


@app.get("/healthz")
async def healthz() -> dict[str, bool]:
    return {"up": True}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PEER_PORT"]), log_level="warning", access_log=False)
