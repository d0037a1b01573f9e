"""Commands that hold the company up: `up`, `demo`, and a company of its own for `run --wait`."""

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
from rich.console import Console
from rich.text import Text

from backend.adapters.llm.replay import Recordings
from backend.cli import follow, start
from backend.cli.place import Company, do, prepare, reached, with_addresses
from backend.cli.screen import screen, typed
from backend.engine.embedded import Children, Stack, api_of, is_up, wait_for_signal
from backend.errors import Unavailable
from backend.settings import Settings

SHOWCASE = "showcase"
API_SECONDS = 60.0
"""How long the api may take to answer for the first time."""


def up(port: int | None, workers: int) -> int:
    """Run everything until a signal comes."""
    settings = Settings()
    if port is not None:
        settings = settings.model_copy(update={"port": port})
    console = screen()
    with running(settings, workers=workers) as started:
        console.print(Text(f"The company works at {_api(started)}", style="bold"))
        console.print(Text(f"  API         {_api(started)}/docs"))
        console.print(Text(f"  Database    {_shown(started)}"))
        console.print(Text(f"  Logs        {started.home / 'logs'}"))
        console.print(Text(f"  Start       {typed(settings)} run BRIEF.md --wait"))
        console.print(Text("Ctrl-C ends it; runs go on from where they are when it starts again."))
        wait_for_signal()
        console.print(Text("Handing the runs back …"))
    return 0


def demo() -> int:
    """Run the showcase and say where everything is."""
    settings = Settings()
    brief = Recordings(settings.home).load(SHOWCASE).brief
    console = screen()
    console.print(Text("The showcase: a written script plays the models; everything else is real.", style="bold"))

    async def work(company: Company) -> int:
        run = await start.begin(company, brief, SHOWCASE, start.title_of(brief), {})
        code = await follow.to_the_end(company, run.id)
        facts = await start.summary(company, run.id)
        start.tell(console, facts)
        _tell_more(console, company.settings, facts["run_id"], api_of(settings) if up_already else "")
        return code

    up_already = is_up(settings)
    if up_already:
        console.print(Text(f"A company runs in {settings.home} already and plays it."))
        with follow.left_alone(settings):
            return do(work, settings)
    with running(settings.model_copy(update={"port": 0})) as started:
        return do(work, started)


def _tell_more(console: Console, settings: Settings, run_id: str, api_url: str) -> None:
    command = typed(settings)
    api = api_url or f"http://{settings.host}:{Settings().port}"
    first = "The company is still up:" if api_url else f"Start it again with `{command} up`, then:"
    console.print(Text(f"\n{first}", style="bold"))
    for what, how in (
        ("Everything", f"{command} show {run_id}"),
        ("Why a line", f"{command} why README.md:1"),
        ("API", f"{api}/docs"),
        ("Tasks", f"curl '{api}/api/tasks/tree?run_id={run_id}'"),
        ("Comments", f"curl '{api}/api/comments?run_id={run_id}'"),
        ("SQL", "SELECT * FROM v_run_overview, v_task_tree, v_cost_by_role … at the address that `up` prints"),
    ):
        console.print(Text(f"  {what:<11} {how}"))
    console.print(Text("\nA brief of your own, with any model that speaks the OpenAI protocol:", style="bold"))
    console.print(Text(f"  OPENAI_API_KEY=… {command} run BRIEF.md --budget-usd 2 --wait"))


def migrate() -> int:
    """Bring the database to the newest revision; a state directory is started for it."""
    settings = Settings()
    with reached(settings) as found:
        asyncio.run(prepare(found))
    screen().print(Text("The database is at the newest revision, and the templates are loaded."))
    return 0


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
            stack.announce(_api(started))
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


def _api(settings: Settings) -> str:
    return f"http://{settings.host}:{settings.port}"


def _shown(settings: Settings) -> str:
    assert settings.database_url is not None
    return settings.database_url.get_secret_value()
