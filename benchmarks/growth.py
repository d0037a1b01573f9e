"""What stored runs cost those that come: starting, claiming and listing with 10, 1,000 and 100,000 runs in the tables.

Each stored run has six events, a task and a comment. Measured in one process, without HTTP.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any
from uuid import UUID

import asyncpg
from pydantic import SecretStr

from backend.adapters.db.direct import driver
from backend.adapters.db.engine import Sessions, connect, sessions_of, transaction
from backend.adapters.db.pool import open_pool
from backend.cli.place import prepare
from backend.domain.run import RunStatus
from backend.engine import claims
from backend.engine.claiming import claim
from backend.engine.prompts import Library
from backend.engine.reaper import Reaper
from backend.operations import pages, projects, runs, starting
from backend.settings import Settings
from benchmarks.rig import place, told
from benchmarks.rig.place import Servers
from benchmarks.rig.work import load

WARM = 5

STORE = (
    "WITH p AS (INSERT INTO projects (name, brief, status, template_slug, template_version)"
    " VALUES ('stored', 'brief', 'COMPLETED', 'lean', 1) RETURNING id), r AS (INSERT INTO project_runs (project_id,"
    " number, status, graph, graph_version, template_slug, template_version, brief, config_snapshot, ended_at,"
    " event_seq, created_at) SELECT p.id, n, 'COMPLETED', 'steps', '1', 'lean', 1, 'A brief.', '{}', now(), 6,"
    " now() - make_interval(secs => n) FROM p, generate_series(1, $1) n RETURNING id, project_id), t AS ("
    " INSERT INTO tasks (run_id, key, title, kind, assigned_role) SELECT id, 'T1', 'Task', 'feature', 'developer'"
    " FROM r), c AS (INSERT INTO task_comments (run_id, author_role, author_name, comment_type, body)"
    " SELECT id, 'developer', 'developer', 'progress', repeat('word ', 40) FROM r)"
    " INSERT INTO events (project_id, run_id, seq, type, source, payload)"
    " SELECT project_id, id, n, 'node.finished', 'engine', '{\"node\": \"n\"}' FROM r, generate_series(1, 6) n"
)


class Silent:
    """A bell that nobody hears: no worker is measured here."""

    def ring(self, run_id: UUID) -> None:
        return None

    def wake(self, run_id: UUID) -> None:
        return None

    async def say(self, run_id: UUID, words: bytes) -> bool:
        return False


class Steps:
    """What is timed, each on its own."""

    def __init__(self, sessions: Sessions, pool: Any) -> None:
        self._sessions, self._pool, self._bell = sessions, pool, Silent()
        self._reaper, self._library = Reaper(sessions, self._bell, every=2), Library(pool)

    async def _timed(self, work: Callable[[], Awaitable[Any]]) -> tuple[float, Any]:
        began = time.perf_counter()
        made = await work()
        return (time.perf_counter() - began) * 1000, made

    async def once(self) -> dict[str, float]:
        """One of each: start a run, claim it, list, look for what is forgotten, end it."""
        started, run_id = await self._timed(self._start)
        claimed, held = await self._timed(lambda: self._claim(run_id))
        listed, _ = await self._timed(self._list)
        reaped, _ = await self._timed(self._reaper.reap)
        end: dict[str, Any] = {"code": "bench", "message": "Done.", "lease_seconds": 15.0}
        await claims.end(self._sessions, self._bell, run_id, held.epoch, RunStatus.FAILED, **end)
        return {"start": started, "claim": claimed, "list": listed, "reaper": reaped}

    async def project(self) -> None:
        async with transaction(self._sessions, self._bell) as session:
            made = await projects.create(session, name="bench", brief="brief", template_slug="lean", by="bench")
            self._project = made.id

    async def _start(self) -> UUID:
        async with driver(self._sessions) as alone:
            run = await starting.start(
                alone, self._project, patch={}, graph_version=lambda _: "1", faults=lambda *_: (), by="bench"
            )
            return run.id

    async def _claim(self, run_id: UUID) -> Any:
        who: dict[str, Any] = {"owner": "bench", "lease_seconds": 15.0, "max_claims": 5, "library": self._library}
        return await claim(self._sessions, self._pool, self._bell, run_id, **who)

    async def _list(self) -> Any:
        async with self._sessions() as session:
            return await runs.page(session, pages.PageRequest(limit=50))


async def fill(place: Servers, url: str, count: int) -> None:
    """Migrate a database and store so many runs in it."""
    await prepare(Settings(home=place.home, database_url=SecretStr(url), redis_url=SecretStr(place.redis_url)))
    database = await asyncpg.connect(url, command_timeout=1800)
    await database.execute(STORE, count)
    await database.execute("VACUUM ANALYZE")
    await database.close()


async def bench(place: Servers, urls: dict[int, str], times: int) -> dict[int, dict[str, float]]:
    """A database for each number of runs; each step takes its turn in all of them."""
    engines = {count: connect(url, pool_size=2) for count, url in urls.items()}
    pools = {count: await open_pool(url, size=2) for count, url in urls.items()}
    steps = {count: Steps(sessions_of(engine), pools[count]) for count, engine in engines.items()}
    for count, url in urls.items():
        await fill(place, url, count)
        await steps[count].project()
    samples: dict[int, list[dict[str, float]]] = {count: [] for count in urls}
    for number in range(times + WARM):
        for count in urls if number % 2 else reversed(urls):
            samples[count].append(await steps[count].once())
    for count, engine in engines.items():
        await engine.dispose()
        await pools[count].close()
    return {
        count: {name: statistics.median(one[name] for one in found[WARM:]) for name in found[0]}
        for count, found in samples.items()
    }


def main() -> None:
    options = place.parser(__doc__, rounds=1)
    options.add_argument("--stored", type=int, nargs="*", default=[10, 1_000, 100_000])
    options.add_argument("--times", type=int, default=40, help="of each step")
    asked = options.parse_args()
    with place.servers() as servers, ExitStack() as held:
        urls = {count: held.enter_context(servers.database()) for count in sorted(asked.stored)}
        found = asyncio.run(bench(servers, urls, asked.times))
    few, most = min(found), max(found)
    told.tell(
        "What stored runs cost",
        told.table(
            ("runs stored", "start ms", "claim ms", "list ms", "reaper ms"),
            [(f"{count:,}", *found[count].values()) for count in found],
        ),
        [
            told.Ratio(f"{name}: {most:,} stored / {few:,} stored", found[most][name] / found[few][name], "<= 1.5")
            for name in found[few]
        ],
        load(),
    )


if __name__ == "__main__":
    main()
