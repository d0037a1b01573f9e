"""The peers: how each is started, given a run, and asked how many are done."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
from redis.asyncio import Redis

from backend.adapters.db.engine import asyncpg_url
from backend.engine.embedded.database import free_port
from backend.engine.embedded.processes import Child
from benchmarks.peers import celery_app, environments
from benchmarks.peers.contender import CONNECTIONS
from benchmarks.rig.place import Servers, environment_of_peer, process, wait_for
from benchmarks.rig.wire import Lines

HERE = Path(__file__).parent


class Peer(ABC):
    """A server of somebody else with an HTTP api and a database of its own."""

    name = ""
    keeps = ""
    package = ""
    counted = ""
    """The statement that counts the runs that are done."""
    share = 1.0
    """The share of the runs that it is given: slow ones get fewer, or the round would not end."""

    def __init__(self) -> None:
        self.python = environments.made(self.package)
        self._children: list[Child] = []

    def pids(self) -> list[int]:
        return [child.process.pid for child in self._children]

    @contextmanager
    def running(self, servers: Servers) -> Iterator[None]:
        with ExitStack() as held:
            self.url = held.enter_context(servers.database())
            self.port = free_port()
            self._children = []
            self.start(held, servers)
            yield

    @abstractmethod
    def start(self, held: ExitStack, servers: Servers) -> None:
        """Start its processes; returns when its api answers."""

    def child(self, held: ExitStack, servers: Servers, name: str, argv: list[str], **environment: str) -> Child:
        made = process(name, argv, environment_of_peer(**environment), servers.logs, cwd=servers.home)
        self._children.append(held.enter_context(made))
        return self._children[-1]

    async def open(self) -> None:
        self._lines = Lines(self.port, CONNECTIONS)
        self._database = await asyncpg.connect(self.url)

    async def prepare(self, count: int) -> list[Any]:
        return [None] * count

    async def submit(self, identity: Any, number: int) -> None:
        await self._lines.ask("POST", f"/runs/{number}")

    async def ended(self) -> int:
        found: int = await self._database.fetchval(self.counted)
        return found

    async def close(self) -> None:
        self._lines.close()
        await self._database.close()


class Dbos(Peer):
    """DBOS in one process with its api: workflows start in the request, or come from its queue."""

    package = "dbos"
    counted = "SELECT count(*) FROM dbos.workflow_status WHERE status = 'SUCCESS'"

    def __init__(self, way: str) -> None:
        super().__init__()
        self._way = way
        self.name = f"DBOS {environments.version(self.python, 'dbos')}, {way}"
        self.keeps = "every step's result; a workflow goes on when its own process starts again"

    def start(self, held: ExitStack, servers: Servers) -> None:
        program = [str(self.python), str(HERE / "dbos_app.py")]
        settings = {"PEER_DATABASE_URL": self.url, "PEER_PORT": str(self.port), "PEER_WAY": self._way}
        wait_for(self.port, "/healthz", self.child(held, servers, "dbos", program, **settings))


class Prefect(Peer):
    """Prefect's server over Postgres, and a process that drives flows."""

    package = "prefect"
    keeps = "states of flow and tasks; a flow whose process dies does not go on"
    counted = "SELECT count(*) FROM flow_run WHERE state_type = 'COMPLETED'"
    share = 0.1

    def __init__(self) -> None:
        super().__init__()
        self.name = f"Prefect {environments.version(self.python, 'prefect')}"

    def start(self, held: ExitStack, servers: Servers) -> None:
        at, home = free_port(), str(servers.home / "prefect")
        url = asyncpg_url(self.url).render_as_string(hide_password=False)
        quiet = {"PREFECT_HOME": home, "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
        quiet |= {"PREFECT_LOGGING_LEVEL": "ERROR", "PREFECT_SERVER_UI_ENABLED": "false"}
        command = [str(self.python), "-m", "prefect", "server", "start", "--port", str(at), "--host", "127.0.0.1"]
        served = self.child(held, servers, "prefect-server", command, **quiet, PREFECT_API_DATABASE_CONNECTION_URL=url)
        wait_for(at, "/api/health", served)
        program = [str(self.python), str(HERE / "prefect_app.py")]
        quiet |= {"PREFECT_API_URL": f"http://127.0.0.1:{at}/api", "PEER_PORT": str(self.port)}
        wait_for(self.port, "/healthz", self.child(held, servers, "prefect", program, **quiet))


class Aegra(Peer):
    """Aegra with its Redis workers in the api process, as it ships; checkpoints before each next node, as we have."""

    package = "aegra"
    keeps = "a checkpoint a node; a run goes on in another process after its lease"
    counted = "SELECT count(*) FROM runs WHERE status = 'success'"
    share = 0.5

    def __init__(self) -> None:
        self.python = environments.made("aegra", "3.12")
        self.name = f"Aegra {environments.version(self.python, 'aegra-api')}"

    def start(self, held: ExitStack, servers: Servers) -> None:
        config = servers.home / "aegra.json"
        config.write_text(json.dumps({"graphs": {"steps": f"{HERE / 'steps_graph.py'}:graph"}}))
        argv = [str(self.python), "-m", "uvicorn", "aegra_api.main:app", "--host", "127.0.0.1", "--port"]
        argv += [str(self.port), "--log-level", "warning", "--no-access-log"]
        settings = {"DATABASE_URL": self.url, "REDIS_BROKER_ENABLED": "true", "REDIS_URL": servers.redis_url}
        settings |= {"AEGRA_CONFIG": str(config), "LOG_LEVEL": "ERROR", "ENV_MODE": "PRODUCTION"}
        settings |= {"PORT": str(self.port), "HOST": "127.0.0.1"}
        wait_for(self.port, "/health", self.child(held, servers, "aegra", argv, **settings))

    async def prepare(self, count: int) -> list[Any]:
        made = await asyncio.gather(*(self._lines.ask("POST", "/threads", {}) for _ in range(count)))
        return [answer.json()["thread_id"] for answer in made]

    async def submit(self, identity: Any, number: int) -> None:
        body = {"assistant_id": "steps", "input": {"run": number}, "durability": "sync"}
        await self._lines.ask("POST", f"/threads/{identity}/runs", body)


class LangGraphDev(Peer):
    """LangGraph's own server in its development form: everything in memory."""

    package = "langgraph"
    keeps = "nothing while it runs: a file at times; not meant for production"
    share = 0.5

    def __init__(self) -> None:
        super().__init__()
        version = environments.version(self.python, "langgraph-api")
        self.name = f"langgraph dev (langgraph-api {version})"

    def start(self, held: ExitStack, servers: Servers) -> None:
        folder = servers.home / "langgraph-dev"
        folder.mkdir(exist_ok=True)
        config = folder / "langgraph.json"
        config.write_text(json.dumps({"dependencies": ["."], "graphs": {"steps": f"{HERE / 'steps_graph.py'}:graph"}}))
        argv = [str(self.python.with_name("langgraph")), "dev", "--no-browser", "--no-reload", "--config", str(config)]
        argv += ["--port", str(self.port), "--n-jobs-per-worker", "10", "--server-log-level", "ERROR"]
        quiet = {"LANGSMITH_TRACING": "false", "LANGGRAPH_CLI_NO_ANALYTICS": "1"}
        wait_for(self.port, "/ok", self.child(held, servers, "langgraph-dev", argv, **quiet))

    async def prepare(self, count: int) -> list[Any]:
        made = await asyncio.gather(*(self._lines.ask("POST", "/threads", {}) for _ in range(count)))
        return [answer.json()["thread_id"] for answer in made]

    async def submit(self, identity: Any, number: int) -> None:
        body = {"assistant_id": "steps", "input": {"run": number}, "durability": "sync"}
        await self._lines.ask("POST", f"/threads/{identity}/runs", body)
        self._taken += 1

    async def open(self) -> None:
        self._lines = Lines(self.port, CONNECTIONS)
        self._taken = 0

    async def close(self) -> None:
        self._lines.close()

    async def ended(self) -> int:
        """Its threads are busy from the request on until the run is done."""
        count = {}
        for status in ("busy", "error"):
            answer = await self._lines.ask("POST", "/threads/count", {"status": status})
            count[status] = int(answer.json())
        if count["error"]:
            raise RuntimeError(f"{count['error']} runs failed.")
        return self._taken - count["busy"]


class BareCeleryChain:
    """A chain in prefork children and nothing else: whoever measures sends it, and what that costs is in no figure."""

    keeps = "the message of the task that runs, in Redis; nothing of what is done"
    share = 1.0
    way = ", bare"

    def __init__(self, children: int = 2) -> None:
        from celery import __version__

        self._count = children
        self.name = f"Celery {__version__} chain{self.way}"

    @contextmanager
    def running(self, servers: Servers) -> Iterator[None]:
        with ExitStack() as held:
            self._redis_url = servers.redis_url
            self._children = []
            self.start(held, servers, environment_of_peer(PEER_REDIS_URL=servers.redis_url, PYTHONPATH=str(HERE)))
            yield

    def start(self, held: ExitStack, servers: Servers, environment: dict[str, str]) -> None:
        argv = ["-m", "celery", "-A", "celery_app", "worker", "-c", str(self._count), "-l", "WARNING"]
        argv += ["--without-gossip", "--without-mingle", "-Q", "bench.chain"]
        self.child(held, servers, "celery", argv, environment)

    def child(
        self, held: ExitStack, servers: Servers, name: str, argv: list[str], environment: dict[str, str]
    ) -> Child:
        made = process(name, [sys.executable, *argv], environment, servers.logs, cwd=HERE)
        self._children.append(held.enter_context(made))
        return self._children[-1]

    def pids(self) -> list[int]:
        return [child.process.pid for child in self._children]

    async def open(self) -> None:
        # Read when a process first sends: this one never hears of the broker otherwise.
        os.environ["PEER_REDIS_URL"] = celery_app.app.conf.broker_url = self._redis_url
        self._redis: Any = Redis.from_url(self._redis_url)
        await self._redis.delete(celery_app.DONE)

    async def prepare(self, count: int) -> list[Any]:
        return [None] * count

    async def submit(self, identity: Any, number: int) -> None:
        await asyncio.to_thread(celery_app.begin, number)

    async def ended(self) -> int:
        return int(await self._redis.get(celery_app.DONE) or 0)

    async def close(self) -> None:
        await self._redis.aclose()


class CeleryChain(BareCeleryChain):
    """The same over HTTP, as all the others are asked: an api sends it, and can say later how far it is."""

    keeps = "the message of the task that runs, and the results of those that are done, in Redis"
    way = " behind FastAPI"

    def start(self, held: ExitStack, servers: Servers, environment: dict[str, str]) -> None:
        self._port = free_port()
        environment |= {"PEER_RESULTS": servers.redis_url, "PEER_PORT": str(self._port)}
        super().start(held, servers, environment)
        wait_for(self._port, "/healthz", self.child(held, servers, "celery-api", ["celery_api.py"], environment))

    async def open(self) -> None:
        await super().open()
        self._lines = Lines(self._port, CONNECTIONS)

    async def submit(self, identity: Any, number: int) -> None:
        await self._lines.ask("POST", f"/runs/{number}")

    async def close(self) -> None:
        self._lines.close()
        await super().close()
