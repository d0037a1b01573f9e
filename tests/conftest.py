"""Fixtures over the real stack: PostgreSQL and Valkey, migrated by the migrations, nothing faked.

The embedded stack is started once a session (once a worker under xdist). With `COMPANY_TEST_DATABASE_URL` and
`COMPANY_TEST_REDIS_URL` the servers named there are used instead; databases are made there and dropped again.

`session` is rolled back after each test: for tests of operations. `database_url`, `engine`, `sessions` and `settings`
belong together: a database of the test's own, for tests that really commit, start processes or use several
connections. What `session` wrote is not seen there.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
import redis
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from backend.adapters.db import engine as engines
from backend.adapters.db import migrate
from backend.adapters.db import pool as pools
from backend.adapters.db.engine import Sessions, asyncpg_url, connect, sessions_of
from backend.adapters.db.pool import open_pool
from backend.adapters.db.tables import Project, ProjectRun
from backend.domain.config import RunConfig
from backend.engine.embedded import Stack
from backend.settings import Settings
from tests.acceptance.faults.table import pytest_terminal_summary
from tests.patience import PATIENCE

__all__ = ["pytest_terminal_summary"]

LONGEST_FIRST = ("acceptance/faults", "acceptance", "integration/adapters", "integration/engine")
"""Folders whose files take longest: begun first, they do not keep one process busy when the others are done."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """How many processes `-n auto` means: two more than there are cores, since some always wait."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1) + 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what takes longest first; with `--dist loadfile` files are handed out in this order."""

    def rank(item: pytest.Item) -> int:
        folder = item.path.parent.relative_to(Path(__file__).parent).as_posix()
        return LONGEST_FIRST.index(folder) if folder in LONGEST_FIRST else len(LONGEST_FIRST)

    items.sort(key=rank)


@dataclass(frozen=True)
class Servers:
    """Where the servers of this session listen."""

    database_url: str
    redis_url: str


def embedded_settings(home: Path, **values: Any) -> Settings:
    """Settings with a state directory of their own, whatever DATABASE_URL says outside."""
    return Settings(**({"home": home, "database_url": None, "redis_url": None} | values))


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """The servers that are named in the environment, or an embedded stack of this session's own."""
    database, broker = os.environ.get("COMPANY_TEST_DATABASE_URL"), os.environ.get("COMPANY_TEST_REDIS_URL")
    home = tmp_path_factory.mktemp("stack")
    with Stack.start(embedded_settings(home, database_url=database, redis_url=broker), durable=False) as stack:
        yield Servers(stack.database_url, stack.redis_url)


async def _command(servers: Servers, statement: str) -> None:
    connection = await asyncpg.connect(servers.database_url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def _url_of(servers: Servers, database: str) -> str:
    return asyncpg_url(servers.database_url).set(drivername="postgresql", database=database).render_as_string(False)


@pytest.fixture(scope="session")
async def empty_database(servers: Servers) -> AsyncIterator[Callable[[], Awaitable[str]]]:
    """Makes a database with nothing in it and returns its address; all are dropped at the end of the session."""
    made: list[str] = []

    async def make(template: str = "template1") -> str:
        name = f"company_test_{uuid4().hex}"
        await _command(servers, f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        made.append(name)
        return _url_of(servers, name)

    yield make
    for name in made:
        await _command(servers, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.fixture(scope="session")
async def migrated_template(empty_database: Callable[[], Awaitable[str]]) -> str:
    """The name of a database at the newest revision that nobody writes to: others are cloned from it."""
    url = await empty_database()
    await migrate.upgrade(url)
    name = asyncpg_url(url).database
    assert name is not None
    return name


async def _clone(servers: Servers, template: str) -> AsyncIterator[str]:
    name = f"company_test_{uuid4().hex}"
    await _command(servers, f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    yield _url_of(servers, name)
    await _command(servers, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.fixture(scope="session")
async def shared_engine(servers: Servers, migrated_template: str) -> AsyncIterator[AsyncEngine]:
    """The engine under `session`: one database for all tests that are rolled back."""
    async for url in _clone(servers, migrated_template):
        engine = connect(url)
        yield engine
        await engine.dispose()


@pytest.fixture
async def session(shared_engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
    """A session whose every write is rolled back after the test, commits included."""
    async with shared_engine.connect() as connection:
        outer = await connection.begin()
        async with AsyncSession(
            connection, join_transaction_mode="create_savepoint", expire_on_commit=False
        ) as session:
            yield session
        await outer.rollback()


@pytest.fixture
async def database_url(servers: Servers, migrated_template: str) -> AsyncIterator[str]:
    """A database of this test's own, at the newest revision."""
    async for url in _clone(servers, migrated_template):
        yield url


@pytest.fixture
async def engine(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AsyncEngine]:
    """An engine over this test's own database; it is patient with a server that shares the machine with all tests."""
    with monkeypatch.context() as patience:
        patience.setattr(engines, "CONNECT", PATIENCE)
        engine = connect(database_url, answer=PATIENCE)
    yield engine
    await engine.dispose()


@pytest.fixture
async def pool(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    """The raw pool over this test's own database, as patient as the engine."""
    with monkeypatch.context() as patience:
        patience.setattr(pools, "CONNECT", PATIENCE)
        opened = await open_pool(database_url, command_timeout=PATIENCE, patience=PATIENCE)
    yield opened
    await opened.close()


@pytest.fixture
def sessions(engine: AsyncEngine) -> Sessions:
    """Sessions over this test's own database; what they commit is committed."""
    return sessions_of(engine)


@pytest.fixture
def redis_url(servers: Servers) -> str:
    """An emptied Redis database."""
    client = redis.Redis.from_url(servers.redis_url)
    client.flushdb()
    client.close()
    return servers.redis_url


@pytest.fixture
def settings(tmp_path: Path, database_url: str, redis_url: str) -> Settings:
    """Settings of an installation over this test's own database, with a state directory of its own."""
    return Settings(home=tmp_path / "company", database_url=database_url, redis_url=redis_url)


MakeProject = Callable[..., Awaitable[Project]]
MakeRun = Callable[..., Awaitable[ProjectRun]]


@pytest.fixture
def make_project() -> MakeProject:
    """Makes a project in a session: `await make_project(session, name="…", …)`, flushed but not committed."""

    async def make(session: AsyncSession, **values: Any) -> Project:
        project = Project(
            **{
                "name": "Greeter",
                "brief": "A library that greets.",
                "status": "READY",
                "template_slug": "standard",
                "template_version": 1,
            }
            | values
        )
        session.add(project)
        await session.flush()
        return project

    return make


@pytest.fixture
def make_run(make_project: MakeProject) -> MakeRun:
    """Makes a run in a session, and its project unless one is given: `await make_run(session, status="RUNNING")`.

    `config` may be a `RunConfig`; its limits become the run's. Flushed but not committed.
    """

    async def make(
        session: AsyncSession, *, project: Project | None = None, config: RunConfig | None = None, **values: Any
    ) -> ProjectRun:
        owner = project or await make_project(session)
        chosen = config or RunConfig()
        run = ProjectRun(
            **{
                "project_id": owner.id,
                "number": 1,
                "graph": chosen.graph,
                "graph_version": "1",
                "template_slug": owner.template_slug,
                "template_version": owner.template_version,
                "brief": owner.brief,
                "config_snapshot": chosen.model_dump(mode="json"),
                "limit_tokens": chosen.budget.tokens,
                "limit_usd": chosen.budget.usd,
                "limit_seconds": chosen.budget.seconds,
            }
            | values
        )
        session.add(run)
        await session.flush()
        # Server defaults (status, counters) are part of the row that tests look at.
        await session.refresh(run)
        return run

    return make
