"""Where benchmarks run: one Postgres and one broker for all, databases of their own, and the company's processes."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import asyncpg
from pydantic import SecretStr

from backend.adapters.db.engine import asyncpg_url
from backend.cli.place import prepare
from backend.engine.embedded import Stack
from backend.engine.embedded.database import free_port
from backend.engine.embedded.processes import Child, end, spawn
from backend.settings import Settings

ROOT = Path(__file__).parents[2]
START_SECONDS = 90.0
STOPPING = ((signal.SIGTERM, 15.0), (signal.SIGKILL, 5.0))


@dataclass(frozen=True)
class Servers:
    """One PostgreSQL, one broker, and a folder for what processes write."""

    database_url: str
    redis_url: str
    home: Path
    logs: Path
    pids: tuple[int, ...]
    """Their processes, where they are ours."""

    @contextmanager
    def database(self) -> Iterator[str]:
        """The address of a new database, dropped at the end."""
        name = f"company_bench_{uuid4().hex[:12]}"
        asyncio.run(execute(self.database_url, f'CREATE DATABASE "{name}"'))
        try:
            yield asyncpg_url(self.database_url).set(drivername="postgresql", database=name).render_as_string(False)
        finally:
            asyncio.run(execute(self.database_url, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'))


async def execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@contextmanager
def servers() -> Iterator[Servers]:
    """Those that DATABASE_URL and REDIS_URL name (databases are made there), else embedded ones; durable as always."""
    with TemporaryDirectory(prefix="company-bench-") as folder:
        home = Path(folder)
        with Stack.start(Settings(home=home / "stack")) as stack:
            own = [server.child.process.pid for server in (stack.postgres, stack.broker) if server is not None]
            yield Servers(stack.database_url, stack.redis_url, home, home / "logs", tuple(own))


@contextmanager
def process(
    name: str, argv: Sequence[str], environment: Mapping[str, str], logs: Path, *, cwd: Path | None = None
) -> Iterator[Child]:
    """A child that ends with the block."""
    if cwd is not None:
        argv = ["/bin/sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", str(cwd), *argv]
    child = spawn(name, argv, log=logs / f"{name}.log", environment=environment)
    try:
        yield child
    finally:
        end(child, STOPPING)


def wait_for(port: int, path: str, child: Child) -> None:
    """Wait until a server answers at a path."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if child.process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise RuntimeError(f"{child.name} did not come up: {child.last_words(12)}")


@dataclass
class Company:
    """The company's api and workers over a database of their own."""

    settings: Settings
    database_url: str
    port: int
    api: Child
    workers: list[Child] = field(default_factory=list)

    @property
    def pids(self) -> list[int]:
        """The processes of workers and api."""
        return [child.process.pid for child in (*self.workers, self.api)]


def plugin(home: Path, **graphs: str) -> Path:
    """A folder for PYTHONPATH that offers graphs as a package of somebody else would."""
    folder = home / "plugin"
    info = folder / "bench-1.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bench\nVersion: 1\n")
    lines = [f"{name} = {where}" for name, where in graphs.items()]
    (info / "entry_points.txt").write_text("\n".join(["[company.graphs]", *lines]) + "\n")
    return folder


GRAPHS = {"steps": "benchmarks.graphs.steps:STEPS", "asking": "benchmarks.graphs.asking:ASKING"}


@contextmanager
def company(place: Servers, url: str, *, workers: int = 1, **engine: Any) -> Iterator[Company]:
    """Started over the database at `url`, which is migrated for it; `engine` are engine settings."""
    port = free_port()
    home = place.home / "company"
    settings = Settings(home=home, port=port, database_url=SecretStr(url), redis_url=SecretStr(place.redis_url))
    asyncio.run(prepare(settings))
    environment = settings.for_child(database_url=url, redis_url=place.redis_url)
    environment |= {"COMPANY_PORT": str(port), "COMPANY_HOST": "127.0.0.1", "COMPANY_LOG_LEVEL": "WARNING"}
    environment |= {"PYTHONPATH": f"{ROOT}:{plugin(place.home, **GRAPHS)}"}
    environment |= {f"COMPANY_ENGINE__{name.upper()}": str(value) for name, value in engine.items()}
    with ExitStack() as held:
        command = [sys.executable, "-m", "backend.worker.app"]
        crew = [
            held.enter_context(process(f"worker-{n}", command, environment, place.logs)) for n in range(1, workers + 1)
        ]
        api = held.enter_context(process("api", [sys.executable, "-m", "backend.cli.server"], environment, place.logs))
        wait_for(port, "/healthz", api)
        yield Company(settings, url, port, api, crew)


def memory_mb(pid: int, what: str = "VmRSS") -> float:
    """What a process holds in memory (`VmHWM`: the most it ever held)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"Process {pid} tells no {what}.")


def parser(about: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """The options that every benchmark takes."""
    made = argparse.ArgumentParser(description=about)
    made.add_argument("--rounds", type=int, default=rounds, help="rounds, whose median is told")
    return made


def environment_of_peer(**more: str) -> dict[str, str]:
    """What a peer's process sees: nothing of ours, and no account of anybody."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    return kept | {"PYTHONUNBUFFERED": "1"} | more
