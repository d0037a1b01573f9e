"""Starting a run of a brief, in a company that runs already or in one that is started for it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from rich.console import Console
from rich.text import Text

from backend.adapters.db.direct import driver_of
from backend.adapters.db.engine import ring_after_commit, transaction
from backend.adapters.db.tables import ProjectRun
from backend.cli import follow
from backend.cli.place import Company, do, person
from backend.cli.running import running
from backend.cli.screen import screen, typed
from backend.domain.config import Patch
from backend.domain.run import RunStatus
from backend.engine import health
from backend.engine.embedded import attach, is_up
from backend.errors import Unavailable
from backend.operations import idempotency, projects, reports, repositories, runs, starting
from backend.settings import Settings


@dataclass(frozen=True, slots=True)
class Asked:
    """What a run is asked for with. The same key gives the same run again."""

    brief: str
    template: str
    name: str
    patch: Patch = field(default_factory=dict)
    key: str | None = None


def run_brief(asked: Asked, *, wait: bool, as_json: bool) -> int:
    """Start a run; with `wait`, follow it to its end and return the exit code that tells how it ended."""
    settings = Settings()
    projects.check_brief(asked.brief)
    if asked.key is not None:
        idempotency.check(asked.key)

    async def work(company: Company) -> int:
        return await _run(company, asked, wait=wait, as_json=as_json)

    if attach(settings) is not None:
        with follow.left_alone(settings):
            return do(work, settings)
    if not wait:
        raise Unavailable("No company runs here: start one with `company up`, or add --wait to run this brief alone.")
    with running(settings, quiet=as_json, with_api=False) as started:
        return do(work, started)


def title_of(brief: str) -> str:
    """A name for a project: the first words of its brief."""
    line = next((line.strip("# \t") for line in brief.splitlines() if line.strip("# \t")), "Project")
    return line if len(line) <= 80 else line[:79].rsplit(" ", 1)[0] + "…"


async def begin(company: Company, asked: Asked) -> ProjectRun:
    """Make the project and its first run in one transaction; a key that has started a run gives that one."""
    brief, template, patch = asked.brief, asked.template, asked.patch
    async with transaction(company.sessions, company.bell) as session:
        if asked.key is not None:
            again = await starting.under_key(session, asked.key, brief=brief, template_slug=template, patch=patch)
            if again is not None:
                return again
        project = await projects.create(session, name=asked.name, brief=brief, template_slug=template, by=person())
        started = await starting.start(
            await driver_of(session),
            project.id,
            patch=patch,
            graph_version=company.graphs.newest,
            faults=company.faults,
            by=person(),
            idempotency_key=asked.key,
        )
        ring_after_commit(session, started.id)
        return await runs.get(session, started.id)


async def _run(company: Company, asked: Asked, *, wait: bool, as_json: bool) -> int:
    run = await begin(company, asked)
    await _say_who_is_missing(company)
    console = screen()
    if not wait:
        if as_json:
            print(json.dumps({"run_id": str(run.id), "project_id": str(run.project_id), "status": run.status}))  # noqa: T201 - the output that was asked for
        else:
            said = f"Run {run.number} of {asked.name} is {run.status.lower()}: {run.id}"
            console.print(Text(f"{said}\n  {typed(Settings())} watch {run.id}"))
        return 0
    code = await follow.to_the_end(company, run.id, as_json=as_json)
    facts = await summary(company, run.id)
    if as_json:
        print(json.dumps(facts))  # noqa: T201 - the output that was asked for
    else:
        tell(console, facts)
    return code


async def _say_who_is_missing(company: Company) -> None:
    """Servers that are named need not have a worker; a company that is up here has, or is just starting some."""
    if is_up(company.settings) or company.settings.redis_url is None:
        return
    found = await health.workers(company.settings.redis_url.get_secret_value())
    if found.status != "ok":
        said = f"{found.sentence} The run waits in the queue until one does. {found.advice}"
        screen(errors=True).print(Text(said, style="yellow"))


async def summary(company: Company, run_id: UUID) -> dict[str, Any]:
    """What a run has come to, and where its repository is."""
    async with company.sessions() as session:
        run = await runs.get(session, run_id)
        repository = str(repositories.workspace_of(company.settings.home, run).git_dir)
        return {**await reports.of_run(session, run), "repository": repository, "project_id": str(run.project_id)}


_NEXT = {
    RunStatus.STOPPED_BUDGET: (
        "Go on",
        "retry {run} --budget-usd … (or -tokens, -seconds; of a month or project: `budget`, then retry)",
    ),
    RunStatus.STOPPED_SECURITY: ("See why", "show {run}   then waive what may pass, or only: retry {run}"),
    RunStatus.FAILED: ("Go on", "retry {run}   when its cause is gone; what was paid is not paid again"),
    RunStatus.STOPPED_USER: ("Go on", "retry {run}"),
}
"""What a person may type next, by how a run ended."""


def tell(console: Console, facts: dict[str, Any]) -> None:
    """Print the summary of a run for people."""
    spent, report = facts["spent"], facts["report"] or {}
    console.print()
    console.print(Text(f"Run {facts['number']} is {facts['status']}.", style="bold"))
    # A headline is the words of a model: of a run that did not complete, the reason is told instead.
    headline = report.get("headline") if facts["status"] == RunStatus.COMPLETED else facts["error"]
    if headline:
        console.print(Text(f"  {headline}"))
    done = ", ".join(f"{count} {status.lower()}" for status, count in facts["tasks"].items())
    findings = ", ".join(f"{count} {status}" for status, count in facts["findings"].items())
    console.print(Text(f"  Tasks       {done or 'none'}"))
    console.print(Text(f"  Findings    {findings or 'none'}"))
    console.print(
        Text(f"  Cost        ${spent['usd']} for {spent['tokens']:,} tokens in {spent['model_calls']} model calls")
    )
    if Path(facts["repository"]).exists():
        console.print(Text(f"  Repository  {facts['repository']}"))
        console.print(Text(f"  Look        git clone {facts['repository']} result"))
    if facts["status"] in _NEXT:
        label, how = _NEXT[facts["status"]]
        console.print(Text(f"  {label:<11} {typed(Settings())} {how.format(run=facts['run_id'][:13])}"))
