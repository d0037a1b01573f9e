"""The commands and their options; what they do stands in the modules beside this one."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from backend.errors import CompanyError, Fault, Invalid

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


@app.command()
def demo() -> None:
    """Run the showcase through the whole company, at no cost, and say where everything is."""
    from backend.cli.host import demo as work

    raise typer.Exit(work())


@app.command()
def up(
    port: Annotated[int | None, typer.Option(help="Port of the API; 0 takes any that is free")] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes")] = 1,
) -> None:
    """Run database, broker, api and worker until Ctrl-C."""
    from backend.cli.host import up as work

    raise typer.Exit(work(port, workers))


@app.command("run")
def run_brief(
    brief: Annotated[str, typer.Argument(help="A file with the brief, `-` for standard input, or the brief itself")],
    template: Annotated[str, typer.Option(help="Preset to start from")] = "standard",
    name: Annotated[str | None, typer.Option(help="Name of the project; else the brief's first line")] = None,
    budget_usd: Annotated[str | None, typer.Option(help="Most money, such as 2.50")] = None,
    budget_tokens: Annotated[int | None, typer.Option(help="Most tokens, input and output")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting, such as parallelism=3 or models.default=gpt-4o-mini")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the run to its end")] = False,
    as_json: Json = False,
) -> None:
    """Start a run of a brief.

    With --wait the exit code tells the end: 0 completed, 3 stopped by budget, 4 by security, 5 failed, 6 stopped by a
    person, 7 waits for an answer.
    """
    from backend.cli.start import run_brief as work

    patch = _patch(settings or [], budget_usd, budget_tokens)
    raise typer.Exit(work(_brief(brief), template, name, patch, wait=wait, as_json=as_json))


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
    """Show a run: where it stands, its tasks, findings, questions and cost."""
    from backend.cli.look import show as work

    raise typer.Exit(work(run, as_json=as_json))


@app.command()
def compare(first: Run, second: Run, as_json: Json = False) -> None:
    """Compare two runs: cost, time, tasks, findings, tests, gates, and the diff of their results."""
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
    """Follow a run to its end; the exit code is that of `company run --wait`."""
    from backend.cli.steer import watch as work

    raise typer.Exit(work(run, after, tokens=tokens, as_json=as_json))


@app.command()
def pause(
    run: Run = "last",
    now: Annotated[
        bool, typer.Option("--now", help="Before the next model call; commands on their way are cut")
    ] = False,
) -> None:
    """Ask a run to hold when its node is done, or now; it goes on exactly there."""
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
) -> None:
    """Let a run that failed or was stopped go on from its last checkpoint."""
    from backend.cli.steer import retry as work

    usd = None if budget_usd is None else _money(budget_usd)
    raise typer.Exit(work(run, usd, budget_tokens))


@app.command()
def fork(
    run: Run = "last",
    checkpoint: Annotated[
        str | None, typer.Option(help="Id of a checkpoint; else the newest with something left to do")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="What is to differ, such as security.gate=warn or budget.usd=5")
    ] = None,
) -> None:
    """Begin another run of the project from a checkpoint of this one."""
    from backend.cli.steer import fork as work

    raise typer.Exit(work(run, checkpoint, _patch(settings or [], None, None)))


@app.command()
def answer(
    question: Annotated[str, typer.Argument(help="Id of a question, or its first letters; `company show` lists them")],
    text: Annotated[str, typer.Argument(help="The answer; to a budget question what to add, such as `1.50 usd`")],
) -> None:
    """Answer a question of a run."""
    from backend.cli.steer import answer as work

    raise typer.Exit(work(question, text))


@app.command()
def budget(
    project: Annotated[str | None, typer.Option(help="Id of a project; else the calendar month is meant")] = None,
    usd: Annotated[str | None, typer.Option(help="Most money in all, such as 50.00")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens in all")] = None,
    unlimited: Annotated[bool, typer.Option("--unlimited", help="Take both limits away")] = False,
) -> None:
    """Show or set what a project, or all of them in a calendar month, may spend; both limits are set together."""
    from backend.cli.steer import budget as work

    money = None if usd is None else _money(usd)
    raise typer.Exit(work(project, money, tokens, change=unlimited or money is not None or tokens is not None))


@app.command()
def record(
    run: Run = "last",
    to: Annotated[Path | None, typer.Option("--to", help="File to write; else standard output")] = None,
) -> None:
    """Write the model replies of a run as a recording that can be played again at no cost."""
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
    """Tell why a line is there: commit, task, criteria, role, model, findings and cost."""
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
    """Remove what is kept no longer: COMPANY_RETENTION__CHECKPOINT_DAYS, …ARCHIVED_DAYS, …ORPHAN_DAYS (0: for ever)."""
    from backend.cli.upkeep import gc as work

    raise typer.Exit(work(dry_run=dry_run, as_json=as_json))


@app.command()
def migrate() -> None:
    """Bring the database to the newest revision and load the templates that ship."""
    from backend.cli.host import migrate as work

    raise typer.Exit(work())


def _brief(given: str) -> str:
    """The text of the brief: a file where there is one of this name, standard input for `-`, else the text itself."""
    if given == "-":
        return _decoded(sys.stdin.buffer.read(2_000_000), "standard input")
    looks_like_file = "\n" not in given and len(given) < 1_000
    if looks_like_file and Path(given).is_file():
        with Path(given).open("rb") as file:
            return _decoded(file.read(2_000_000), given)
    if looks_like_file and " " not in given.strip() and ("/" in given or given.endswith((".md", ".txt"))):
        raise Invalid(f"There is no file {given}.")
    return given


def _decoded(body: bytes, source: str) -> str:
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Invalid(f"The brief in {source} is not text in UTF-8; save it as UTF-8.", code="invalid_brief") from error


def _patch(pairs: Sequence[str], usd: str | None, tokens: int | None) -> dict[str, Any]:
    patch: dict[str, Any] = {}
    for pair in pairs:
        path, equals, value = pair.partition("=")
        if not equals or not path.strip():
            raise Invalid(f"`--set {pair}` is not KEY=VALUE; write it as parallelism=3.")
        _put(patch, path.strip().split("."), _value(value), pair)
    if usd is not None:
        _put(patch, ["budget", "usd"], str(_money(usd)), "--budget-usd")
    if tokens is not None:
        _put(patch, ["budget", "tokens"], tokens, "--budget-tokens")
    return patch


def _put(patch: dict[str, Any], path: Sequence[str], value: Any, said: str) -> None:
    at = patch
    for key in path[:-1]:
        at = at.setdefault(key, {})
        if not isinstance(at, dict):
            raise Invalid(f"`{said}` sets something below a setting that has a value already.")
    at[path[-1]] = value


def _value(text: str) -> Any:
    """YAML decides what a value is: 3 is a number, true a switch, null takes a setting back to its default."""
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise Invalid(f"The value `{text[:100]}` cannot be read.") from error


def _money(text: str) -> Decimal:
    right = "an amount in USD above 0 with up to six decimals, such as 2.50"
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount <= 0 or amount > 1_000_000 or int(amount.as_tuple().exponent) < -6:
        raise Invalid(f"--budget-usd takes {right}.", faults=[Fault("/budget/usd", right)])
    return amount
