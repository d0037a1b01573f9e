"""The embedded Valkey: in memory only, password only, loopback only. Losing what it holds costs a delay."""

from __future__ import annotations

import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from backend.engine.embedded.binaries import CLEAN, Binaries, valkey
from backend.engine.embedded.database import TAKEN, free_port, password, remembered_port
from backend.engine.embedded.place import Place
from backend.engine.embedded.processes import Child, end, run_once, spawn
from backend.errors import Unavailable

START_SECONDS = 20.0
STOPPING = ((signal.SIGTERM, 5.0),)


@dataclass(frozen=True, slots=True)
class Broker:
    """A running server."""

    child: Child
    port: int
    password: str

    @property
    def url(self) -> str:
        """Its address, password included."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def stop(self) -> None:
        """Stop it; nothing is written."""
        end(self.child, STOPPING)


def start(place: Place, logs: Path, port: int | None = None) -> Broker:
    """Start the server and wait until it answers; on `port` if one is given, else where it was last time if it can."""
    secret = password(place)
    programs = _programs(place)
    folder = place.make_folder("valkey")
    wanted = port or remembered_port(place, "valkey")
    failure: str | None = None
    for _ in range(1 if port else 5):
        chosen = port or free_port(wanted)
        child = _launch(place, programs, folder, chosen, secret, logs)
        failure = _wait_until_ready(child, chosen, secret)
        if failure is None:
            (place.folder / "valkey.port").write_text(str(chosen))
            return Broker(child, chosen, secret)
        end(child, STOPPING)
        if TAKEN not in failure:
            break
        wanted = None
    raise Unavailable(f"Valkey did not start: {failure} See {logs / 'valkey.log'}.", code="embedded_valkey_failed")


def _programs(place: Place) -> Binaries:
    programs = valkey()
    argv = [_server(programs), "--version"]
    if run_once(argv, environment=CLEAN, identity=place.identity, seconds=20).returncode == 0:
        return programs
    return programs.copied_to(place.folder / "programs", place.identity)


def _server(programs: Binaries) -> str:
    names = ("valkey-server", "redis-server")
    return next(programs.program(name) for name in names if Path(programs.program(name)).exists())


def _launch(place: Place, programs: Binaries, folder: Path, port: int, secret: str, logs: Path) -> Child:
    # By standard input, since anybody can read a command line.
    configuration = "\n".join(
        (
            "bind 127.0.0.1",
            f"port {port}",
            f'dir "{folder}"',
            f"requirepass {secret}",
            'save ""',
            "appendonly no",
            "daemonize no",
            "",
        )
    )
    return spawn(
        "valkey",
        [_server(programs), "-"],
        log=logs / "valkey.log",
        environment=CLEAN,
        identity=place.identity,
        stdin=configuration.encode(),
    )


def answers(port: int, secret: str, *, seconds: float = 1.0) -> bool:
    """Whether a server on loopback takes the password and answers."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
            connection.sendall(f"AUTH {secret}\r\nPING\r\n".encode())
            received = b""
            while len(received) < len(b"+OK\r\n+PONG\r\n"):
                piece = connection.recv(64)
                if not piece:
                    break
                received += piece
    except OSError:
        return False
    return received == b"+OK\r\n+PONG\r\n"


def _wait_until_ready(child: Child, port: int, secret: str) -> str | None:
    """None once it answers; what it said when it ended or took too long."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if child.process.poll() is not None:
            return child.last_words()
        if answers(port, secret):
            return None
        time.sleep(0.02)
    return f"It did not answer within {START_SECONDS:.0f} s. {child.last_words()}"
