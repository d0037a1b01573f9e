"""The bell of a process: doorbells to the workers through Celery, wake-ups to followers through Redis pub/sub."""

from __future__ import annotations

import asyncio
import logging
from uuid import UUID

from celery import Celery
from kombu.exceptions import KombuError

from backend.adapters.bus import Waker
from backend.settings import Settings
from backend.worker.broker import EXECUTE, QUEUE, make_app

_log = logging.getLogger(__name__)


class CeleryBell:
    """Rings and wakes; neither ever raises, since Postgres is the truth and the reaper makes good."""

    def __init__(self, app: Celery, waker: Waker) -> None:
        self._app, self._waker = app, waker

    async def ring(self, run_id: UUID) -> None:
        """Tell the workers that a run may be claimed."""
        await asyncio.to_thread(self._send, run_id)

    def _send(self, run_id: UUID) -> None:
        try:
            self._app.send_task(EXECUTE, args=[str(run_id)], queue=QUEUE, ignore_result=True, retry=False)
        except (KombuError, OSError) as error:
            _log.warning("A doorbell was lost; the reaper will ring again: %s", error)

    async def wake(self, run_id: UUID) -> None:
        """Tell the followers of a run."""
        await self._waker.wake(run_id)

    async def say(self, run_id: UUID, words: bytes) -> bool:
        """Tell live followers what a model says; whether anybody heard it."""
        return await self._waker.say(run_id, words)

    async def close(self) -> None:
        """Close the connections."""
        await self._waker.close()
        await asyncio.to_thread(self._app.close)


def make_bell(settings: Settings) -> CeleryBell:
    """The bell of a process that is no worker: the api, the command line."""
    assert settings.redis_url is not None
    return CeleryBell(make_app(settings), Waker(settings.redis_url.get_secret_value()))
