"""How many commands run at once on this machine: lock files, so that several processes share one limit."""

from __future__ import annotations

import asyncio
import fcntl
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

_POLL_SECONDS = 0.03


def _directory() -> Path:
    place = Path(tempfile.gettempdir()) / f"company-commands-{os.geteuid()}"
    place.mkdir(mode=0o700, exist_ok=True)
    if place.is_symlink() or place.stat().st_uid != os.geteuid():
        place = Path(tempfile.mkdtemp(prefix="company-commands-"))  # somebody else took the name: count alone
    return place


def _take(place: Path, slots: int) -> int | None:
    for number in range(slots):
        handle = os.open(place / f"{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
        else:
            return handle
    return None


@asynccontextmanager
async def slot(slots: int) -> AsyncIterator[None]:
    """Hold one of the machine's slots; a process that dies gives its slots back by dying."""
    place = _directory()
    while (handle := _take(place, slots)) is None:  # noqa: ASYNC110  (see below)
        await asyncio.sleep(_POLL_SECONDS)  # other processes hold the locks: there is no event to wait for
    try:
        yield
    finally:
        os.close(handle)
