"""Commands that hold the company up: `up`, `demo`, and `migrate`, which needs no more than its servers."""

from __future__ import annotations

import asyncio

from rich.console import Console
from rich.text import Text

from backend.adapters.llm.replay import Recordings
from backend.cli import follow, start
from backend.cli.place import Company, do, prepare, reached
from backend.cli.running import address_of, running
from backend.cli.screen import screen, typed
from backend.engine.embedded import api_of, is_up, wait_for_signal
from backend.settings import Settings

SHOWCASE = "showcase"
_OVERVIEW = "sql 'SELECT * FROM v_run_overview'"


def up(port: int | None, workers: int) -> int:
    """Run everything until a signal comes."""
    settings = Settings()
    if port is not None:
        settings = settings.model_copy(update={"port": port})
    console = screen()
    with running(settings, workers=workers) as started:
        console.print(Text(f"The company works at {address_of(started)}", style="bold"))
        console.print(Text(f"  API         {address_of(started)}/docs"))
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
        run = await start.begin(company, start.Asked(brief, SHOWCASE, start.title_of(brief)))
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
        ("SQL", f"{command} {_OVERVIEW}   also v_task_tree, v_cost_by_role …"),
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


def _shown(settings: Settings) -> str:
    assert settings.database_url is not None
    return settings.database_url.get_secret_value()
