"""The event loop thread of a worker: everything that its runs share lives here, made once."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from backend import loops
from backend.adapters import crashes, vitals
from backend.adapters.bus import Waker
from backend.adapters.crashes import crash_point
from backend.adapters.db import migrate
from backend.adapters.db.engine import AWAY, connect, sessions_of
from backend.adapters.db.pool import open_pool
from backend.adapters.llm.gateway import Gateway
from backend.engine.executor import Executor
from backend.engine.leases import Heartbeat
from backend.engine.leftovers import Leftovers
from backend.engine.loader import Graphs
from backend.engine.prompts import Library
from backend.engine.reaper import Reaper
from backend.engine.workbench import workbenches
from backend.settings import Settings
from backend.worker import watchdog

if TYPE_CHECKING:
    from backend.worker.bell import CeleryBell

_log = logging.getLogger(__name__)
_SWEEP_SECONDS = 60.0


class LoopThread:
    """One loop, one engine, one pool, one heartbeat; Celery's thread hands over run ids, as long as there is room."""

    def __init__(self, settings: Settings, bell: CeleryBell, waker: Waker) -> None:
        self.name = f"{socket.gethostname()}/{os.getpid()}/{uuid4().hex[:6]}"
        self._settings, self._bell, self._waker = settings, bell, waker
        self._loop = loops.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="loop", daemon=True)
        self._ready = threading.Event()
        self._leaving = False
        self._stop: asyncio.Event | None = None
        self._executor: Executor | None = None
        self._in_hand: set[asyncio.Task[None]] = set()
        # Each is written by one thread only; the difference is what is in hand, handed over and not begun included.
        self._taken = self._left = 0
        self.room, self._tells = os.pipe()
        """Readable when there is room again, or when the worker is asked to leave."""
        os.set_blocking(self.room, False)
        os.set_blocking(self._tells, False)

    def start(self) -> None:
        """Begin; returns when runs can be taken."""
        self._thread.start()
        self._ready.wait()

    @property
    def has_room(self) -> bool:
        """Whether another run may be taken in hand."""
        return not self._leaving and self._taken - self._left < self._settings.engine.concurrency

    def take(self, run_id: str) -> None:
        """Have one slice of a run driven; returns at once, and the run's row tells how it went."""
        crash_point("heard")
        identity = UUID(run_id)
        if not self._leaving:
            self._taken += 1
            self._loop.call_soon_threadsafe(self._begin, identity)

    def drain(self) -> None:
        """Take no more, and ask all runs to hold at their next safe point."""
        self._leaving = True
        self._loop.call_soon_threadsafe(self._hold_all)
        self._tell()

    def wait(self) -> None:
        """Wait until no run is in hand."""
        asyncio.run_coroutine_threadsafe(self._all_left(), self._loop).result()

    def stop(self) -> None:
        """End the loop once its runs are given back."""
        self._leaving = True
        if self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=self._settings.engine.shutdown_seconds)

    def _hold_all(self) -> None:
        if self._executor is not None:
            self._executor.hold_all("shutdown")

    def _begin(self, run_id: UUID) -> None:
        task = self._loop.create_task(self._guarded(run_id))
        self._in_hand.add(task)
        task.add_done_callback(self._let_go)

    def _let_go(self, task: asyncio.Task[None]) -> None:
        self._in_hand.discard(task)
        self._left += 1
        # Asked after counting: whoever saw no room a moment ago, and waits, is told.
        if self._taken - self._left >= self._settings.engine.concurrency - 1:
            self._tell()

    def _tell(self) -> None:
        with suppress(BlockingIOError):  # a full pipe tells as well
            os.write(self._tells, b".")

    async def _all_left(self) -> None:
        while self._in_hand:
            await asyncio.wait(self._in_hand)

    async def _guarded(self, run_id: UUID) -> None:
        assert self._executor is not None
        try:
            await self._executor.execute(run_id)
        except AWAY as error:
            _log.warning("The run %s is left to its lease: %s", run_id, error)
        except Exception:  # noqa: BLE001 - one run never takes the others of this process down
            _log.exception("The run %s is left to its lease.", run_id)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        settings = self._settings
        assert settings.database_url is not None
        assert settings.redis_url is not None
        crashes.arm(settings.engine.crash_at)
        url, lease_seconds = settings.database_url.get_secret_value(), settings.engine.lease_seconds
        async with AsyncExitStack() as stack:
            # Whoever is silent for longer than its lease has lost its runs: its locks must not keep others from them.
            engine = connect(url, pool_size=settings.engine.pool_size, patience=lease_seconds)
            stack.push_async_callback(engine.dispose)
            pool = await self._open_pool(url)
            stack.push_async_callback(pool.close)
            await _until_migrated(engine)
            gateway = Gateway(settings)
            stack.push_async_callback(gateway.close)
            heartbeat = Heartbeat(url, every=settings.engine.heartbeat_seconds, lease_seconds=lease_seconds)
            heartbeat.start()
            stack.callback(heartbeat.stop)
            watching = watchdog.of_worker(self._loop, self._thread, seconds=settings.engine.stall_seconds)
            watching.start()
            stack.callback(watching.stop)
            sessions = sessions_of(engine)
            leftovers = Leftovers(sessions, settings.home)
            self._executor = Executor(
                sessions=sessions,
                pool=pool,
                bell=self._bell,
                transport=gateway,
                graphs=Graphs(),
                library=Library(pool),
                workbenches=workbenches(settings),
                heartbeat=heartbeat,
                settings=settings.engine,
                owner=self.name,
                leftovers=leftovers,
                out_of_memory=partial(os.kill, os.getpid(), signal.SIGTERM),
            )
            background = [
                asyncio.create_task(Reaper(sessions, self._bell, every=settings.engine.reaper_seconds).run()),
                asyncio.create_task(leftovers.keep_sweeping(every=_SWEEP_SECONDS)),
                asyncio.create_task(vitals.publish(settings.redis_url.get_secret_value(), self.name)),
            ]
            loops.settle_down()
            self._ready.set()
            _log.info("The worker %s takes runs.", self.name)
            await self._stop.wait()
            for task in background:
                task.cancel()
            await asyncio.wait(background)
            await self._waker.close()

    async def _open_pool(self, url: str) -> asyncpg.Pool:
        while True:
            try:
                engine = self._settings.engine
                return await open_pool(url, size=engine.pool_size, patience=engine.lease_seconds)
            except AWAY as error:
                _log.warning("The database cannot be reached yet: %s", error)
                await asyncio.sleep(1)


async def _until_migrated(engine: AsyncEngine) -> None:
    """Wait for the tables that this release needs; a worker of the release before goes on beside a newer one."""
    told = ""
    while True:
        try:
            found = await migrate.standing(engine)
        except AWAY as error:
            said = f"The database cannot be reached yet: {getattr(error, 'orig', None) or error}"
        else:
            said = "" if found.age == "same" else found.sentence
            if found.age != "older":
                break
        if said != told:
            _log.warning("No run is taken yet. %s", said)
        told = said
        await asyncio.sleep(1)
    if said:
        _log.warning(said)
