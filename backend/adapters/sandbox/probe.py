"""Runs inside the sandbox at start and tries to do what it must not; prints what succeeded as JSON.

It stands alone: the interpreter inside sees only this file and the standard library.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any


def attempt(action: Callable[..., Any], *args: Any) -> bool:
    """Return whether an action succeeded."""
    try:
        return action(*args) is not False
    except OSError:
        return False


def write(path: str) -> None:
    """Write a file."""
    with open(path, "w") as file:  # noqa: PTH123  (strings only)
        file.write("x")


def read(path: str) -> bytes:
    """Read a file."""
    with open(path, "rb") as file:  # noqa: PTH123  (strings only)
        return file.read()


def connect(port: int) -> None:
    """Reach a port of the machine."""
    with socket.socket() as client:
        client.settimeout(2)
        client.connect(("127.0.0.1", port))


def find_in_environments(canary: str) -> bool:
    """Look for a value in the environment of every process in sight."""
    if canary in os.environ.values():
        return True
    for name in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208  (strings only)
        try:
            if canary.encode() in read(f"/proc/{name}/environ"):
                return True
        except OSError:
            continue
    return False


def fork_beyond(limit: int) -> bool:
    """Start more processes than allowed."""
    children: list[int] = []
    try:
        for _ in range(limit + 4):
            pid = os.fork()
            if pid == 0:
                time.sleep(30)
                os._exit(0)
            children.append(pid)
    except OSError:
        return False
    finally:
        for pid in children:
            attempt(os.kill, pid, signal.SIGKILL)
    return True


def main(facts: dict[str, Any]) -> None:
    """Try everything once."""
    if facts["victim"] != os.getpid():
        attempt(os.kill, facts["victim"], signal.SIGKILL)
    attempt(write, facts["beside"])
    result = {
        "worked": attempt(write, "probe.txt"),
        "connected to the company's port": attempt(connect, facts["port"]),
        "read the company's secret": attempt(read, facts["secret"]),
        "read the company's environment": attempt(find_in_environments, facts["canary"]),
        "wrote to the system": any([attempt(write, path) for path in ("/usr/probe", "/etc/probe", "/probe")]),
        "passed the process limit": attempt(fork_beyond, facts["processes"]),
    }
    print(json.dumps(result), flush=True)  # noqa: T201  (the way out)
    os._exit(0)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
