"""The state directory: who holds it, and where the servers of the company that holds it listen."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from backend.errors import Unavailable

ATTACH_SECONDS = 90.0
"""How long a second command waits for a company that is just starting: as long as its servers may take."""

LOCK_SECONDS = 0.5
"""A company that merely looks whether the directory is held, holds it for an instant."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the database and the broker are, and the api where there is one."""

    database_url: str
    redis_url: str
    api_url: str = ""


def prepare(home: Path) -> Path:
    """Make the state directory if it is not there; return its absolute path, links resolved."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        resolved = home.resolve(strict=True)
        probe = resolved / f".write-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise Unavailable(
            f"The state directory {home} cannot be written ({error.strerror}): give it to this user, or set "
            "COMPANY_HOME to another directory.",
            code="embedded_home_unwritable",
        ) from error
    return resolved


@contextmanager
def held(home: Path) -> Iterator[None]:
    """Hold the state directory; the kernel lets go of it when this process ends, however it ends."""
    with (home / "lock").open("a+") as file:
        _lock(file, home)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            _state(home).unlink(missing_ok=True)


def _lock(file: IO[str], home: Path) -> None:
    until = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() < until:
                time.sleep(0.02)
                continue
            file.seek(0)
            raise Unavailable(
                f"Another company (process {file.read().strip() or 'unknown'}) holds the state directory {home}: stop "
                "it, or set COMPANY_HOME to another directory.",
                code="embedded_home_held",
            ) from error
        except OSError as error:
            raise Unavailable(
                f"The state directory {home} cannot be locked ({error.strerror}): set COMPANY_HOME to a directory "
                "on a local disk.",
                code="embedded_home_unlockable",
            ) from error
        return


def is_held(home: Path) -> bool:
    """Whether some process holds the state directory."""
    try:
        with (home / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def publish(home: Path, addresses: Addresses) -> None:
    """Write where the servers listen, for this user alone."""
    unfinished = _state(home).with_suffix(".new")
    unfinished.unlink(missing_ok=True)
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump({"pid": os.getpid(), **asdict(addresses)}, file)
    unfinished.rename(_state(home))


def published(home: Path) -> Addresses | None:
    """Where the servers of the company that holds the directory listen; None when nobody holds it.

    Waits for one that is just starting. Raises `Unavailable` when it takes too long, or the file is another user's.
    """
    until = time.monotonic() + ATTACH_SECONDS
    while is_held(home):
        try:
            facts = json.loads(_state(home).read_text())
            return Addresses(facts["database_url"], facts["redis_url"], facts.get("api_url", ""))
        except FileNotFoundError:
            if time.monotonic() > until:
                raise Unavailable(
                    f"The company that holds {home} does not finish its start: look into {home / 'logs'}.",
                    code="embedded_start_hangs",
                ) from None
            time.sleep(0.1)
        except PermissionError as error:
            raise Unavailable(
                f"The company that holds {home} belongs to another user: run as that user.", code="embedded_foreign"
            ) from error
    return None


def _state(home: Path) -> Path:
    return home / "stack.json"
