"""Seven steps of a DBOS workflow behind FastAPI: started by the request itself, or put into a queue for the worker."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import uvicorn
import work
from dbos import DBOS
from fastapi import FastAPI

app = FastAPI()
DBOS(
    config={
        "name": "bench",
        "system_database_url": os.environ["PEER_DATABASE_URL"],
        "run_admin_server": False,
        "log_level": "WARNING",
    }
)


@DBOS.step()
def node(number: int, run: int) -> dict[str, Any]:
    return work.part(number, run)


@DBOS.workflow()
def seven(run: int) -> dict[str, Any]:
    return {f"part_{number}": node(number, run) for number in range(1, work.NODES + 1)}


@app.post("/runs/{run}")
def start(run: int) -> dict[str, str]:
    if os.environ["PEER_WAY"] == "queue":
        return {"id": DBOS.enqueue_workflow("runs", seven, run).workflow_id}
    return {"id": DBOS.start_workflow(seven, run).workflow_id}


@app.get("/healthz")
def healthz() -> dict[str, bool]:
    return {"up": True}


if __name__ == "__main__":
    DBOS.launch()
    DBOS.register_queue("runs", worker_concurrency=64, polling_interval_sec=0.1)
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PEER_PORT"]), log_level="warning", access_log=False)
