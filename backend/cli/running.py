"""A whole company held up for the length of a block: servers, api and workers of one state directory."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import typer
from rich.text import Text

from backend.cli import follow
from backend.cli.place import prepare, with_addresses
from backend.cli.screen import screen
from backend.engine.embedded import Children, Stack
from backend.errors import Unavailable
from backend.settings import Settings

API_SECONDS = 60.0
"""How long the api may take to answer for the first time."""


@contextmanager
def running(settings: Settings, *, workers: int = 1, with_api: bool = True, quiet: bool = False) -> Iterator[Settings]:
    """Servers, api and workers of this state directory; all of them end with the block."""
    console = screen(errors=True, quiet=quiet)
    settings = settings.model_copy(update={"home": settings.home.absolute()})
    if with_api:
        settings = settings.model_copy(update={"port": _port(settings)})
    with ExitStack() as held:
        spinner = console.status("Starting the database and the broker …")
        spinner.start()
        held.callback(spinner.stop)
        stack = held.enter_context(Stack.start(settings))
        started = with_addresses(settings, stack.addresses)
        asyncio.run(prepare(started))
        environment = started.for_child(database_url=stack.database_url, redis_url=stack.redis_url)
        environment |= {"COMPANY_HOST": settings.host, "COMPANY_PORT": str(settings.port), "PYTHONUNBUFFERED": "1"}
        commands = {
            f"worker-{number}": [sys.executable, "-m", "backend.worker.app"] for number in range(1, workers + 1)
        }
        if with_api:
            commands["api"] = [sys.executable, "-m", "backend.cli.server"]
        held.enter_context(Children(commands, environment, settings.home / "logs"))
        if with_api:
            _wait_for_api(started)
            stack.announce(address_of(started))
        spinner.stop()
        try:
            yield started
        except KeyboardInterrupt:
            console.print(Text("Ending. Nothing is lost: runs go on from where they are when the company is up again."))
            raise typer.Exit(follow.INTERRUPTED) from None


def _port(settings: Settings) -> int:
    """The port of the api: the one that is set, or any that is free for 0; raises `Unavailable` when it is taken."""
    with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise Unavailable(
                f"Port {settings.port} of {settings.host} cannot be used ({error.strerror}): stop what listens there, "
                "or take another with `company up --port 0` or COMPANY_PORT."
            ) from error
        port: int = probe.getsockname()[1]
        return port


def _wait_for_api(settings: Settings) -> None:
    host = "127.0.0.1" if settings.host in {"0.0.0.0", "::"} else settings.host  # noqa: S104 - a comparison
    url = f"http://{host}:{settings.port}/readyz"
    until = time.monotonic() + API_SECONDS
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(url, timeout=2):  # noqa: S310 - our own address
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise Unavailable(
        f"The api did not come up in {API_SECONDS:.0f} s; {settings.home / 'logs' / 'api.log'} tells why."
    )


def address_of(settings: Settings) -> str:
    """The address of the api."""
    return f"http://{settings.host}:{settings.port}"
