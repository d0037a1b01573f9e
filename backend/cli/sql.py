"""The database as auditors read it: psql over the company's own server, for looking only."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

from backend.cli.place import reached
from backend.engine.embedded import binaries
from backend.errors import Unavailable
from backend.settings import Settings

READ_ONLY = "-c default_transaction_read_only=on"
"""Against slips, not against people: whoever has the password of the database may change it with other programs."""


def sql(statement: str | None, *, as_csv: bool) -> int:
    """Run one statement, or take statements until the input ends; the exit code is 1 when psql reports an error."""
    program = client()
    with reached(Settings()) as found:
        assert found.database_url is not None
        assert found.redis_url is not None
        url = urlsplit(found.database_url.get_secret_value())
        environment = found.for_child(
            database_url=found.database_url.get_secret_value(), redis_url=found.redis_url.get_secret_value()
        )
        environment |= {"PGPASSWORD": unquote(url.password or ""), "PGOPTIONS": READ_ONLY, "PGAPPNAME": "company sql"}
        people, _, place = url.netloc.rpartition("@")  # the password is not for the list of processes
        user = people.partition(":")[0]
        address = url._replace(scheme="postgresql", netloc=f"{user}@{place}" if user else place).geturl()
        argv = [program, "--no-password", "--variable=ON_ERROR_STOP=1", "--pset=expanded=auto", f"--dbname={address}"]
        argv += ["--csv"] if as_csv else []
        argv += [] if statement is None else ["--no-psqlrc", "--pset=pager=off", f"--command={statement}"]
        with _interrupts_left_to_the_client():
            return int(subprocess.run(argv, env=environment, check=False).returncode != 0)


def client() -> str:
    """The program `psql`: that of the embedded server, or the one on the PATH; raises `Unavailable` without either."""
    try:
        beside = shutil.which("psql", path=str(binaries.postgres().folder))
    except Unavailable:
        beside = None
    found = beside or shutil.which("psql")
    if found is None:
        raise Unavailable("There is no psql here: install PostgreSQL's client, or open the database in pgAdmin.")
    return found


@contextmanager
def _interrupts_left_to_the_client() -> Iterator[None]:
    """Ctrl-C cancels a statement in psql; this process waits for it to leave."""
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
