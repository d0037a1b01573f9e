"""A wall clock that is off, in one process: what Python code asks for the time, whoever wrote the code.

Shifted are `time.time`, `time.time_ns` and `now`, `utcnow` and `today` of `datetime` and `date`, in modules that are
imported after `install` as well as through the modules themselves. Not shifted are monotonic clocks (they have no wall
time), what C code reads by itself (certificates, file times), child processes such as git, and the database.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from datetime import date, datetime, timedelta
from typing import Any

_offset = 0.0
_MAPPING = 2 * ctypes.sizeof(ctypes.c_void_p)
"""Where a mappingproxy keeps the dictionary that it shows, after its count and its type."""


def shift(seconds: float) -> None:
    """Let the clock be off by so much from now on."""
    global _offset
    _offset = seconds


def install() -> None:
    """Put the clock in; called before the modules are imported that are to see it."""
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + _offset
    time.time_ns = lambda: real_ns() + int(_offset * 1_000_000_000)
    for kind, names in ((datetime, ("now", "utcnow")), (date, ("today",))):
        for name in names:
            _replace(kind, name, kind.__dict__[name])


def _replace(kind: type, name: str, found: Any) -> None:
    proxy = kind.__dict__
    shown: Any = ctypes.py_object.from_address(id(proxy) + _MAPPING).value
    shown[name] = classmethod(_shifted(found, by_days=name == "today"))
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(kind))


def _shifted(found: Any, *, by_days: bool) -> Callable[..., Any]:
    def read(cls: type, *args: Any, **named: Any) -> Any:
        if by_days and cls is date:
            return date.fromtimestamp(time.time())
        if by_days:
            return cls.fromtimestamp(time.time())  # type: ignore[attr-defined]  # datetime.today
        return found.__get__(None, cls)(*args, **named) + timedelta(seconds=_offset)

    return read
