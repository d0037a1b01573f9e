"""Watching a tree of processes: what it holds in memory and on disk, and how it is killed to the last one."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import time
from typing import Any

_PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024
_MOST_FILES = 200_000


def tree() -> list[int]:
    """Return the pids of everything below this process, which adopts orphans, so nothing leaves the tree."""
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        below = _children(waiting.pop())
        found += below
        waiting += below
    return found


def _children(pid: int) -> list[int]:
    below: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208  (strings only)
            with open(f"/proc/{pid}/task/{thread}/children") as file:  # noqa: PTH123  (strings only)
                below += [int(word) for word in file.read().split()]
    return below


def memory_mb(pids: list[int], limit: int) -> float:
    """Return what a tree holds in memory; pages that its processes share are counted once when it comes to it."""
    rough = sum(_resident_kb(pid) for pid in pids) / 1024
    return rough if rough <= limit else sum(_proportional_kb(pid) for pid in pids) / 1024


def _resident_kb(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm") as file:  # noqa: PTH123  (strings only)
            return int(file.read().split()[1]) * _PAGE_KB
    except (OSError, IndexError):
        return 0


def _proportional_kb(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:  # noqa: PTH123  (strings only)
            rows = [row for row in file if row.startswith("Pss:")]
        return int(rows[0].split()[1])
    except (OSError, IndexError):
        return _resident_kb(pid)


def disk_mb(roots: list[str], pids: list[int]) -> float:
    """Return what files below `roots` hold on disk, with files that are open but deleted; infinite for too many."""
    total, count = 0, 0
    waiting = list(roots)
    while waiting:
        try:
            with os.scandir(waiting.pop()) as directory:
                for entry in directory:
                    count += 1
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
        except OSError:
            continue
        if count > _MOST_FILES:
            return float("inf")
    return (total + _deleted_bytes(pids)) / 1_048_576


def _deleted_bytes(pids: list[int]) -> int:
    held: dict[tuple[int, int], int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for number in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208  (strings only)
                with contextlib.suppress(OSError):
                    seen = os.stat(f"/proc/{pid}/fd/{number}")  # noqa: PTH116  (strings only)
                    if stat.S_ISREG(seen.st_mode) and seen.st_nlink == 0:
                        held[(seen.st_dev, seen.st_ino)] = seen.st_blocks * 512
    return sum(held.values())


def kill_all() -> None:
    """Stop everything below this process, so that nothing can fork away, then kill it and reap it."""
    deadline = time.monotonic() + 10
    while (pids := tree()) and time.monotonic() < deadline:
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        reap()
        time.sleep(0.002)
    reap()


def reap() -> dict[int, int]:
    """Collect every child that has ended: pid to exit code, as a shell counts."""
    ended: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            code = os.waitstatus_to_exitcode(found[1])
            ended[found[0]] = code if code >= 0 else 128 - code
    return ended


class Watch:
    """The limits of one command; `breach` names the first that is passed."""

    def __init__(self, spec: dict[str, Any], started: float) -> None:
        """Take the sizes before the command writes anything."""
        self.spec = spec
        self.deadline = started + spec["seconds"]
        self.roots: list[str] = spec["watched"]
        self.before = disk_mb(self.roots, [])
        self.free = self._free_mb()
        self.next_walk = started

    def breach(self) -> str | None:
        """Return `time`, `memory`, `processes` or `disk`, or None while all hold."""
        now = time.monotonic()
        if now >= self.deadline:
            return "time"
        pids = tree()
        if len(pids) > self.spec["processes"] + 8:
            return "processes"
        if memory_mb(pids, self.spec["memory_mb"]) > self.spec["memory_mb"]:
            return "memory"
        return "disk" if self._disk_is_full(now, pids) else None

    def _disk_is_full(self, now: float, pids: list[int]) -> bool:
        """Walk the tree now and then, and at once when the file system has lost about as much as is allowed."""
        lost = self.free - self._free_mb()
        if now < self.next_walk and lost < self.spec["disk_mb"] / 2:
            return False
        if lost >= self.spec["disk_mb"] / 2:
            self.free -= lost / 2
        held = disk_mb(self.roots, pids) - self.before
        self.next_walk = time.monotonic() + max(0.5, 10 * (time.monotonic() - now))
        return bool(held > self.spec["disk_mb"])

    def _free_mb(self) -> float:
        if not self.roots:
            return 0.0
        seen = os.statvfs(self.roots[0])
        return seen.f_bfree * seen.f_frsize / 1_048_576
