"""Named points at which tests let a worker die; outside tests they cost one comparison."""

from __future__ import annotations

import os
import signal

_armed: dict[str, int] = {}


def arm(points: str) -> None:
    """Let this process kill itself at a point: `name` at its first passing, `name:3` at its third."""
    for point in filter(None, points.split(",")):
        name, _, count = point.partition(":")
        _armed[name] = int(count or 1)


def crash_point(name: str) -> None:
    """Die here, without any clean-up, when a test armed this point."""
    if _armed and name in _armed:
        _armed[name] -= 1
        if _armed[name] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
