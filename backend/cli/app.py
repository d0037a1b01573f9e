"""The commands and their options; what they do stands in the modules beside this one."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from backend.cli import given
from backend.errors import CompanyError, Invalid

app = typer.Typer(
    name="company",
    help="An AI software company that you can trust with a brief, a budget and a deadline.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)

Run = Annotated[str, typer.Argument(help="Id of a run, its first letters, or `last`")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else")]


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; ends the process with the command's exit code."""
    # A shell lets what it starts in the background ignore Ctrl-C; SIGTERM must end it all the same.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # both end a command in order
    try:
        app(args=None if arguments is None else list(arguments), standalone_mode=True)
    except CompanyError as error:
        typer.echo(error.message, err=True)
        for fault in getattr(error, "faults", ())[:20]:
            if fault.message not in error.message:
                typer.echo(f"  {fault.pointer}: {fault.message}", err=True)
        sys.exit(2 if isinstance(error, Invalid) else 1)
    except _away() as error:
        said = str(getattr(error, "orig", None) or error).strip().rstrip(".") or type(error).__name__
        typer.echo(f"Something that is needed is away: {said}. `company doctor` tells what.", err=True)
        sys.exit(1)


def _away() -> tuple[type[Exception], ...]:
    """What the outside raises when it is away; looked up when something was raised, since help imports none of it."""
    libraries = (("sqlalchemy.exc", "SQLAlchemyError"), ("redis.exceptions", "RedisError"))
    known = [getattr(sys.modules.get(module), name, None) for module, name in libraries]
    return (OSError, TimeoutError, *(kind for kind in known if kind is not None))


def _tell_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"company {version('software-company')}")
        raise typer.Exit


@app.callback()
def company(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Tell the version and leave")
    ] = False,
) -> None:
    """An AI software company that you can trust with a brief, a budget and a deadline."""


@app.command()
def demo() -> None:
    """Run the showcase through the company, at no cost.

    A written script plays the models; everything else is real. It ends with where everything is.
    """
    from backend.cli.host import demo as work

    raise typer.Exit(work())


@app.command()
def up(
    port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="Port of the API; 0 takes any that is free")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes")] = 1,
) -> None:
    """Run database, broker, api and worker until Ctrl-C."""
    from backend.cli.host import up as work

    raise typer.Exit(work(port, workers))


@app.command("run")
def run_brief(
    brief: Annotated[str, typer.Argument(help="A file with the brief, `-` for standard input, or the brief itself")],
    template: Annotated[
        str, typer.Option(help="Preset to start from: standard, lean, regulated, local, showcase, or one of yours")
    ] = "standard",
    name: Annotated[str | None, typer.Option(help="Name of the project; else the brief's first line")] = None,
    budget_usd: Annotated[str | None, typer.Option(help="Most money, such as 2.50")] = None,
    budget_tokens: Annotated[int | None, typer.Option(help="Most tokens, input and output")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting, such as parallelism=3; may be repeated"),
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="The same key gives the same run again: for jobs that are repeated")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the run to its end")] = False,
    as_json: Json = False,
) -> None:
    """Start a run of a brief.

    With --wait the exit code tells the end: 0 completed, 3 stopped by budget, 4 by security, 5 failed, 6 stopped by a
    person, 7 waits for an answer.
    """
    from backend.cli.start import Asked, title_of
    from backend.cli.start import run_brief as work

    patch, said = given.patch_of(settings or [], budget_usd, budget_tokens), given.brief_of(brief)
    raise typer.Exit(work(Asked(said, template, name or title_of(said), patch, key), wait=wait, as_json=as_json))


@app.command("runs")
def list_runs(
    status: Annotated[str | None, typer.Option(help="Only runs in this status")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 20,
    as_json: Json = False,
) -> None:
    """List runs, newest first."""
    from backend.cli.look import runs as work

    raise typer.Exit(work(status, limit, as_json=as_json))


@app.command()
def show(run: Run = "last", as_json: Json = False) -> None:
    """Show where a run stands, with tasks, findings and cost."""
    from backend.cli.look import show as work

    raise typer.Exit(work(run, as_json=as_json))


@app.command()
def compare(first: Run, second: Run, as_json: Json = False) -> None:
    """Compare two runs.

    Cost, time, tasks, findings, tests, gates, and the diff of their results.
    """
    from backend.cli.compare import compare as work

    raise typer.Exit(work(first, second, as_json=as_json))


@app.command()
def watch(
    run: Run = "last",
    after: Annotated[int, typer.Option(min=0, help="Begin after this event")] = 0,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Also what models say, of providers with `stream: true`")
    ] = False,
    as_json: Json = False,
) -> None:
    """Follow a run to its end.

    The exit code is that of `company run --wait`: 0 completed, 3 stopped by budget, 4 by security, 5 failed, 6 stopped
    by a person, 7 waits for an answer.
    """
    from backend.cli.steer import watch as work

    raise typer.Exit(work(run, after, tokens=tokens, as_json=as_json))


@app.command()
def pause(
    run: Run = "last",
    now: Annotated[
        bool, typer.Option("--now", help="Before the next model call, not when its node is done; commands are cut")
    ] = False,
) -> None:
    """Ask a run to hold; `resume` lets it go on right there."""
    from backend.cli.steer import order as work

    raise typer.Exit(work("pause_now" if now else "pause", run))


@app.command()
def resume(run: Run = "last") -> None:
    """Let a paused run go on."""
    from backend.cli.steer import order as work

    raise typer.Exit(work("resume", run))


@app.command()
def stop(run: Run = "last") -> None:
    """End a run."""
    from backend.cli.steer import order as work

    raise typer.Exit(work("stop", run))


@app.command()
def retry(
    run: Run = "last",
    budget_usd: Annotated[str | None, typer.Option(help="New limit in all")] = None,
    budget_tokens: Annotated[int | None, typer.Option(min=1, help="New limit in all")] = None,
    budget_seconds: Annotated[int | None, typer.Option(min=1, help="New limit in all, of seconds of work")] = None,
) -> None:
    """Let a run that failed or was stopped go on.

    It goes on from its last checkpoint; what was paid is not paid again.
    """
    from backend.cli.steer import retry as work

    usd = None if budget_usd is None else given.money_of(budget_usd)
    raise typer.Exit(work(run, usd, budget_tokens, budget_seconds))


@app.command()
def fork(
    run: Run = "last",
    checkpoint: Annotated[
        str | None, typer.Option(help="Id of a checkpoint; else the newest with something left to do")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="What is to differ, such as budget.usd=5; may be repeated"),
    ] = None,
) -> None:
    """Begin another run from a checkpoint of this one."""
    from backend.cli.steer import fork as work

    raise typer.Exit(work(run, checkpoint, given.patch_of(settings or [], None, None)))


@app.command()
def answer(
    question: Annotated[str, typer.Argument(help="Id of a question, or its first letters; `company show` lists them")],
    text: Annotated[str, typer.Argument(help="The answer; to a budget question what to add, such as `1.50 usd`")],
) -> None:
    """Answer a question of a run."""
    from backend.cli.steer import answer as work

    raise typer.Exit(work(question, text))


@app.command()
def waive(
    finding: Annotated[str, typer.Argument(help="Id of a finding, or its first letters; `company show` lists them")],
    by: Annotated[str, typer.Option(help="Who lets it pass")],
    reason: Annotated[str, typer.Option(help="Why it may pass")],
    until: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="Day (UTC) from which it counts again")],
) -> None:
    """Let a finding pass until a day; then `retry`."""
    from backend.cli.steer import waive as work

    raise typer.Exit(work(finding, by, reason, until.replace(tzinfo=UTC)))


@app.command()
def budget(
    project: Annotated[str | None, typer.Option(help="Id of a project; else the calendar month is meant")] = None,
    usd: Annotated[str | None, typer.Option(help="Most money in all, such as 50.00")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens in all")] = None,
    seconds: Annotated[int | None, typer.Option(min=1, max=50_000_000, help="Most seconds of work in all")] = None,
    unlimited: Annotated[bool, typer.Option("--unlimited", help="Take all limits away")] = False,
) -> None:
    """Show or set what a month, or a project, may spend.

    The limits are set together: one that is not named is taken away. A month's stand for those that follow.
    """
    from backend.cli.steer import budget as work
    from backend.operations.budgets import Limits

    limits = Limits(tokens, None if usd is None else given.money_of(usd, "--usd"), seconds)
    raise typer.Exit(work(project, limits, change=unlimited or limits != Limits()))


@app.command()
def record(
    run: Run = "last",
    to: Annotated[Path | None, typer.Option("--to", help="File to write; else standard output")] = None,
) -> None:
    """Write the model replies of a run as a recording.

    It can be played again at no cost, with real git, tests, scanners and gates.
    """
    from backend.cli.look import record as work

    raise typer.Exit(work(run, to))


@app.command()
def archive(
    run: Run = "last",
    to: Annotated[Path | None, typer.Option("--to", help="File to write; else run-<n>-<commit> here")] = None,
    form: Annotated[Literal["zip", "tar.gz"], typer.Option("--format")] = "zip",
) -> None:
    """Write the repository of a run as a zip or tar.gz."""
    from backend.cli.look import archive as work

    raise typer.Exit(work(run, to, form))


@app.command()
def why(
    place: Annotated[str, typer.Argument(metavar="FILE:LINE", help="A line of the repository, such as src/app.py:12")],
    run: Annotated[str, typer.Option(help="Run whose repository is meant")] = "last",
    as_json: Json = False,
) -> None:
    """Tell why a line of the repository is there.

    The commit, task, criteria, role, model, findings and cost behind it.
    """
    from backend.cli.look import why as work

    path, _, line = place.rpartition(":")
    if not path or not line.isdigit() or not 0 < int(line) < 10_000_000:
        raise Invalid(f"`{place}` is no FILE:LINE; write it as src/app.py:12.")
    raise typer.Exit(work(path, int(line), run, as_json=as_json))


dead_letters = typer.Typer(help="What could not be executed: list, show, replay.", no_args_is_help=True)
app.add_typer(dead_letters, name="dead-letters")
Letter = Annotated[str, typer.Argument(help="Id of a dead letter, its first letters, or `last`")]


@dead_letters.command("list")
def list_dead_letters(as_json: Json = False) -> None:
    """List dead letters, newest first."""
    from backend.cli.dead_letters import listed as work

    raise typer.Exit(work(as_json=as_json))


@dead_letters.command("show")
def show_dead_letter(letter: Letter = "last") -> None:
    """Show a dead letter as JSON."""
    from backend.cli.dead_letters import show as work

    raise typer.Exit(work(letter))


@dead_letters.command("replay")
def replay_dead_letter(letter: Letter = "last") -> None:
    """Let the run of a dead letter go on from its last checkpoint."""
    from backend.cli.dead_letters import replay as work

    raise typer.Exit(work(letter))


@app.command()
def doctor(
    deep: Annotated[bool, typer.Option("--deep", help="Also check every run's rows against the invariants")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Tell what can be mended by rule, and change nothing")
    ] = False,
    apply: Annotated[bool, typer.Option("--apply", help="With --repair: mend it")] = False,
    as_json: Json = False,
) -> None:
    """Tell what is there, what is missing and what to do."""
    if apply and not repair:
        raise Invalid("--apply belongs to --repair, which tells what it would do when it stands alone.")
    if repair:
        from backend.cli.upkeep import repair as mend

        raise typer.Exit(mend(apply=apply, as_json=as_json))
    from backend.cli.look import doctor as work

    raise typer.Exit(work(deep=deep, as_json=as_json))


@app.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would go, and remove nothing")] = False,
    as_json: Json = False,
) -> None:
    """Remove what is kept no longer.

    What that is says COMPANY_RETENTION__CHECKPOINT_DAYS, …ARCHIVED_DAYS and …ORPHAN_DAYS (0: kept for ever).
    """
    from backend.cli.upkeep import gc as work

    raise typer.Exit(work(dry_run=dry_run, as_json=as_json))


@app.command()
def sql(
    statement: Annotated[
        str | None, typer.Argument(help="Such as `SELECT * FROM v_run_overview`; else psql asks for statements")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV")] = False,
) -> None:
    """Look into the database with psql, read-only."""
    from backend.cli.sql import sql as work

    raise typer.Exit(work(statement, as_csv=as_csv))


@app.command()
def migrate() -> None:
    """Bring the database to this release's revision.

    Loads the templates that ship, too. Migrating twice is the same as once.
    """
    from backend.cli.host import migrate as work

    raise typer.Exit(work())
