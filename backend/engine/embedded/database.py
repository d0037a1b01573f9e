"""The embedded PostgreSQL: made as a whole or not at all, password only, loopback only, every wait bounded."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from backend.engine.embedded.binaries import CLEAN, Binaries, major_of
from backend.engine.embedded.place import Place
from backend.engine.embedded.processes import Child, end, heads, run_once, running_in, spawn
from backend.errors import Unavailable

NAME = "company"
"""Of the database and of its owner."""
START_SECONDS = 60.0
TAKEN = "Address already in use"
STOPPING = ((signal.SIGINT, 20.0), (signal.SIGQUIT, 5.0))
"""Fast shutdown (a checkpoint, no waiting for clients), then immediate (recovery at the next start)."""


@dataclass(frozen=True, slots=True)
class Postgres:
    """A running server."""

    child: Child
    port: int
    password: str

    @property
    def url(self) -> str:
        """Its address, password included."""
        return f"postgresql://{NAME}:{self.password}@127.0.0.1:{self.port}/{NAME}"

    def stop(self) -> None:
        """Stop it; what was acknowledged stays."""
        end(self.child, STOPPING)


def free_port(wanted: int | None = None) -> int:
    """A free port on loopback: the wanted one if it is free."""
    for port in (wanted or 0, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise Unavailable("No port is free on 127.0.0.1: close some programs and start again.", code="no_port")


def remembered_port(place: Place, name: str) -> int | None:
    """The port that a server had last time, so that registrations in other programs go on working."""
    try:
        return int((place.folder / f"{name}.port").read_text())
    except (OSError, ValueError):
        return None


def password(place: Place) -> str:
    """The password of both servers, made once; only the company's user can read it."""
    path = place.folder / "password"
    if not path.exists():
        unfinished = path.with_suffix(".new")
        unfinished.unlink(missing_ok=True)
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(24))
        unfinished.rename(path)
    return path.read_text().strip()


def start(
    place: Place,
    logs: Path,
    port: int | None = None,
    *,
    durable: bool,
    pick: Callable[[int | None], int] = free_port,
) -> Postgres:
    """Make the data if there is none, then start the server over it and wait until it takes connections.

    On `port` if one is given, else on the one of last time or another that `pick` finds free; another program may take
    that before the server does, then another one is picked.
    """
    data = place.folder / "postgres"
    secret = password(place)
    if not (data / "PG_VERSION").exists():
        _create(place, data, secret, durable=durable)
    check_major(place.postgres, data)
    end_predecessor(data)
    wanted = port or remembered_port(place, "postgres")
    failure: str | None = None
    for _ in range(1 if port else 5):
        chosen = port or pick(wanted)
        child = _launch(place, data, chosen, logs, durable=durable)
        failure = _wait_until_ready(child, data)
        if failure is None:
            (place.folder / "postgres.port").write_text(str(chosen))
            return Postgres(child, chosen, secret)
        end(child, STOPPING)
        if TAKEN not in failure:
            break
        wanted = None
    raise Unavailable(
        f"PostgreSQL did not start over {data}: {failure} See {logs / 'postgres.log'}.", code="embedded_postgres_failed"
    )


def _create(place: Place, data: Path, secret: str, *, durable: bool) -> None:
    """`initdb` into a folder of another name, and the rename that makes it count."""
    for leftover in data.parent.glob("postgres.new-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    unfinished = place.make_folder(f"postgres.new-{os.getpid()}")
    given = place.folder / "postgres.password"
    given.unlink(missing_ok=True)
    with os.fdopen(os.open(given, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secret)
    place.give(given)
    options = ["-U", NAME, f"--pwfile={given}", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]
    options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", *([] if durable else ["--no-sync"])]
    programs = place.postgres
    steps = (
        ([programs.program("initdb"), "-D", str(unfinished), *options], b""),
        ([programs.program("postgres"), "--single", "-D", str(unfinished), "postgres"], b"CREATE DATABASE company\n"),
    )
    try:
        for argv, stdin in steps:
            done = run_once(argv, environment=CLEAN, identity=place.identity, seconds=120, stdin=stdin)
            if done.returncode != 0:
                said = _causes(done.stderr.strip() or done.stdout.strip())
                raise Unavailable(
                    f"PostgreSQL could not make its data in {data}: {said}. "
                    "Check the free space and the rights of that directory.",
                    code="embedded_postgres_failed",
                )
        unfinished.rename(data)
    finally:
        given.unlink(missing_ok=True)
        shutil.rmtree(unfinished, ignore_errors=True)


def _causes(said: str) -> str:
    """What a program of PostgreSQL says went wrong; where it does not, its last lines."""
    lines = [" ".join(line.split()) for line in said.splitlines() if line.strip()]
    causes = [line for line in lines if re.search(r"\b(FATAL|PANIC|ERROR|error|could not)\b", line)]
    return " / ".join((causes or lines)[-3:]).rstrip(".")


def check_major(programs: Binaries, data: Path) -> None:
    """Raise `Unavailable` when the data were written by another major version."""
    written = (data / "PG_VERSION").read_text().strip()
    ours = major_of(Path(programs.program("postgres")))
    if written != str(ours):
        raise Unavailable(
            f"The data in {data} was written by PostgreSQL {written}, but this installation brings PostgreSQL {ours}: "
            "dump it with the old version and load it into a new one, or set COMPANY_HOME to another directory.",
            code="embedded_other_major",
        )


def end_predecessor(data: Path, *, grace: float = 10.0) -> None:
    """Wait `grace` seconds until no server works in the data, then end it: its company is gone, we hold the lock.

    After that a pid file is stale, whatever process has its number now.
    """
    home = data.resolve()
    for number, seconds in ((None, grace), (signal.SIGINT, 20.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0)):
        left = running_in(home, "postgres")
        if number is not None:
            # A server's own processes take these signals for orders of the server: a checkpointer ends the log.
            for pid in left if number == signal.SIGKILL else heads(left):
                _signal(pid, number)
        until = time.monotonic() + seconds
        while left and time.monotonic() < until:
            time.sleep(0.05)
            left = running_in(home, "postgres")
        if not left:
            break
    else:
        raise Unavailable(
            f"Another PostgreSQL (process {left[0]}) works in {data} and does not stop: end it and start again.",
            code="embedded_postgres_held",
        )
    if Path("/proc/self").exists():
        (data / "postmaster.pid").unlink(missing_ok=True)


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _launch(place: Place, data: Path, port: int, logs: Path, *, durable: bool) -> Child:
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": "",
        "max_connections": "200",
        "shared_buffers": "128MB",
        "jit": "off",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "password_encryption": "scram-sha-256",
    }
    if not durable:
        settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
    argv = [place.postgres.program("postgres"), "-D", str(data)]
    for name, value in settings.items():
        argv += ["-c", f"{name}={value}"]
    return spawn(
        "postgres",
        argv,
        log=logs / "postgres.log",
        environment=CLEAN,
        identity=place.identity,
        death_signal=signal.SIGINT,
    )


def _wait_until_ready(child: Child, data: Path) -> str | None:
    """None once it takes connections; what it said when it ended or took too long."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if child.process.poll() is not None:
            return child.last_words()
        try:
            lines = (data / "postmaster.pid").read_text().splitlines()
        except OSError:
            lines = []
        if len(lines) > 7 and lines[0] == str(child.process.pid) and lines[7].strip() == "ready":
            return None
        time.sleep(0.02)
    return f"It was not ready after {START_SECONDS:.0f} s. {child.last_words()}"
