"""Processor time of processes and all that they started: on a shared machine it tells more than the clock."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def processor_seconds(roots: Iterable[int]) -> float:
    """What the trees of processes below `roots` have used so far, those that have ended included."""
    used, children = {}, defaultdict(list)
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        # After the name: state, parent, …; the 14th to 17th fields are user, system, and both of waited-for children.
        used[int(entry.name)] = sum(map(int, fields[11:15])) / _TICKS
        children[int(fields[1])].append(int(entry.name))
    found, waiting = 0.0, list(roots)
    while waiting:
        pid = waiting.pop()
        found += used.get(pid, 0.0)
        waiting += children[pid]
    return found


def load() -> str:
    """How busy the machine is, in a phrase."""
    one, five, _ = os.getloadavg()
    return f"{one:.1f} (a minute), {five:.1f} (five) on {os.cpu_count()} processors"
