"""What each of the seven nodes does, the same for every engine: a dict of about 2.9 kB, 20 kB at the end.

It needs nothing but Python itself, since each peer has an environment of its own.
"""

from __future__ import annotations

from functools import cache
from pydoc_data.topics import topics
from typing import Any

NODES = 7
PART = 2_900


@cache
def text(node: int, run: int) -> str:
    """A stretch of Python's own reference manual."""
    manual = "\n".join(topics[name] for name in sorted(topics))
    place = (node * 7919 + run * 104_729) % (len(manual) - PART)
    return manual[place : place + PART]


def part(node: int, run: int) -> dict[str, Any]:
    """What a node adds to the state."""
    return {"text": text(node, run % 64), "sha": "0" * 64, "files": ["a.py", "b.py"]}
