"""Commands that look: runs, a run, a line of code, the health of the installation; and those that write files."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from backend.adapters.db.tables import ProjectRun
from backend.cli.place import Company, do
from backend.cli.screen import screen, typed
from backend.domain.finding import FindingStatus, Severity
from backend.domain.question import QuestionStatus
from backend.domain.run import RunStatus
from backend.engine import doctor as examination
from backend.engine.health import Check
from backend.errors import Invalid
from backend.operations import findings, lookups, pages, projects, questions, recordings, reports, repositories, tasks
from backend.operations import runs as run_operations
from backend.settings import Settings

_FINDINGS = 15
"""Open findings that `show` lists."""
_WIDE = 120
"""Columns of a screen on which `runs` tells all it knows."""
_MARKS = {"ok": ("ok  ", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "bold red")}


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))  # noqa: T201 - the output that was asked for


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _table(*columns: str, gives: str) -> Table:
    """A table whose column `gives` becomes narrower where the screen is too narrow for all."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column != gives, overflow="ellipsis")
    return table


def _cut(text: str, most: int) -> Text:
    return Text(_short(text, most), no_wrap=True, overflow="ellipsis")


def runs(status: str | None, limit: int, *, as_json: bool) -> int:
    """List runs, newest first."""
    if status is not None and status.upper() not in set(RunStatus):
        raise Invalid(f"There is no status {status}; there are {', '.join(RunStatus)}.")

    async def work(company: Company) -> list[dict[str, Any]]:
        async with company.sessions() as session:
            wanted = RunStatus(status.upper()) if status else None
            page = await run_operations.page(session, pages.PageRequest(limit=limit), status=wanted)
            rows: list[dict[str, Any]] = [json.loads(item) for item in page.items]
            for row in rows:
                row["project"] = (await projects.get(session, UUID(row["project_id"]))).name
            return rows

    rows = do(work)
    if as_json:
        _print_json(rows)
        return 0
    wide = ("#", "node", "begun") if screen().width >= _WIDE else ()
    table = _table("run", "project", "status", "%", "tokens", "USD", *wide, gives="project")
    for row in rows:
        tokens = row["spent_tokens_input"] + row["spent_tokens_output"]
        more = (str(row["number"]), row["current_node"] or "", row["created_at"][:19])
        table.add_row(
            row["id"][:13], _cut(row["project"], 40), row["status"], str(row["progress"]), f"{tokens:,}",
            f"{float(row['spent_usd']):.4f}", *(more if wide else ()),
        )  # fmt: skip
    screen().print(table if rows else "There are no runs yet; `company run BRIEF` starts one.", soft_wrap=not rows)
    return 0


def show(name: str, *, as_json: bool) -> int:
    """Show a run."""

    async def work(company: Company) -> dict[str, Any]:
        async with company.sessions() as session:
            run = await run_operations.get(session, await lookups.run_named(session, name))
            project = await projects.get(session, run.project_id)
            wanted = pages.PageRequest(limit=200)
            listed = await tasks.page(session, wanted, run_id=run.id)
            asked = await questions.page(session, wanted, run_id=run.id, status=QuestionStatus.OPEN)
            found = await findings.page(session, wanted, run_id=run.id, status=FindingStatus.OPEN)
            return {
                "project": project.name,
                "repository": str(repositories.workspace_of(company.settings.home, run).git_dir),
                **await reports.of_run(session, run),
                "pinned": {"graph": run.graph, "graph_version": run.graph_version, "prompts": run.prompts},
                "current_node": run.current_node,
                "progress": run.progress,
                "forecast": await run_operations.forecast(session, run.id),
                "task_list": [json.loads(item) for item in reversed(listed.items)],
                "question_list": [json.loads(item) for item in asked.items],
                "finding_list": [json.loads(item) for item in found.items],
            }

    facts = do(work)
    if as_json:
        _print_json(facts)
    else:
        _show(screen(), facts)
    return 0


def _show(console: Console, facts: dict[str, Any]) -> None:
    spent = facts["spent"]
    console.print(Text(f"{facts['project']} · run {facts['number']} · {facts['status']}", style="bold"))
    console.print(Text(f"  {facts['run_id']}"))
    console.print(Text(f"  at {facts['current_node'] or 'the queue'}, {facts['progress']} %"))
    console.print(Text(f"  {spent['model_calls']} model calls, {spent['tokens']:,} tokens, ${spent['usd']}"))
    saved = facts["saved"]
    if saved["calls"]:
        told = f"{saved['calls']} calls, {saved['tokens']:,} tokens, ${saved['usd']}"
        console.print(Text(f"  answered from the journal and not paid again: {told}"))
    if facts["forecast"]:
        _show_forecast(console, facts["forecast"])
    console.print(Text(f"  {facts['repository']}"))
    if facts["error"]:
        console.print(Text(f"  {facts['error']}", style="yellow"))
    table = _table("task", "title", "role", "status", "rounds", "commit", gives="title")
    for task in facts["task_list"]:
        table.add_row(
            task["key"], _cut(task["title"], 60), task["assigned_role"], task["status"], str(task["iteration"]),
            (task["commit"] or "")[:10],
        )  # fmt: skip
    if facts["task_list"]:
        console.print(table, soft_wrap=False)
    _show_findings(console, facts["finding_list"], facts["open_findings"])
    for question in facts["question_list"]:
        console.print(Text(f"\n{question['text']}", style="bold yellow"))
        console.print(Text(f"  {typed(Settings())} answer {question['id']} '…'"))


def _show_findings(console: Console, found: list[dict[str, Any]], counts: dict[str, int]) -> None:
    """The worst open findings, a line each."""
    if not found:
        return
    told = ", ".join(f"{counts[level]} {level}" for level in reversed(Severity) if level in counts)
    console.print(Text(f"  Open findings: {told}", style="yellow"))
    found.sort(key=lambda one: Severity(one["severity"]).rank, reverse=True)
    for one in found[:_FINDINGS]:
        place = f"{one['path'] or ''}{':' + str(one['line']) if one['line'] else ''}"
        line = f"  {one['id'][:13]}  {one['severity']:<8} {one['rule']}  {place}  {one['message']}"
        console.print(Text(_short(" ".join(line.rstrip().split("\n")), console.width)))
    if len(found) > _FINDINGS:
        console.print(Text(f"  … and {sum(counts.values()) - _FINDINGS} more; --json lists them", style="dim"))


def _show_forecast(console: Console, forecast: dict[str, Any]) -> None:
    usd, tokens, seconds = (forecast[unit] for unit in ("usd", "tokens", "seconds"))
    money = f"${usd['low']} to ${usd['high']}, " if float(usd["high"]) else ""
    ends = f"{money}{tokens['low']:,} to {tokens['high']:,} tokens"
    console.print(Text(f"  will end at {ends}, {seconds['low']:,} to {seconds['high']:,} s of work"))
    for unit in ("usd", "tokens", "seconds"):
        verb = {"expected": "will", "possible": "may"}.get(forecast[unit]["reaches_limit"])
        if verb is not None:
            said = f"  the limit of {forecast[unit]['limit']} {unit} {verb} be reached before"
            console.print(Text(said, style="yellow"))
    console.print(Text(f"  {forecast['computed']}", style="dim"))


def record(name: str, to: Path | None) -> int:
    """Write a run's recording."""

    async def work(company: Company) -> str:
        async with company.sessions() as session:
            return await recordings.record(session, await lookups.run_named(session, name))

    text = do(work)
    if to is None:
        print(text, end="")  # noqa: T201 - the output that was asked for
    else:
        to.write_text(text, encoding="utf-8")
        screen().print(Text(f"Wrote {to}."))
        home = Settings().home / "recordings"
        screen().print(
            Text(f"To play it: copy it into {home} and run its brief with --template showcase --set ")
            + Text(f"models.providers.showcase.recording={to.stem}")
        )
    return 0


def archive(name: str, to: Path | None, form: Literal["zip", "tar.gz"]) -> int:
    """Write a run's repository as an archive."""

    async def work(company: Company) -> tuple[ProjectRun, str, bytes]:
        async with company.sessions() as session:
            run = await run_operations.get(session, await lookups.run_named(session, name))
            commit = await repositories.commit_of(session, run)
        return run, commit, await repositories.archive(company.settings.home, run, commit, form)

    run, commit, body = do(work)
    target = to or Path(f"run-{run.number}-{commit[:12]}.{form}")
    target.write_bytes(body)
    screen().print(Text(f"Wrote {target} ({len(body):,} bytes, commit {commit[:12]})."))
    return 0


def why(path: str, line: int, name: str, *, as_json: bool) -> int:
    """Tell why a line is there."""

    async def work(company: Company) -> dict[str, Any]:
        async with company.sessions() as session:
            run = await run_operations.get(session, await lookups.run_named(session, name))
            commit = await repositories.commit_of(session, run)
            blame = await repositories.blame(company.settings.home, run, commit, path, line)
            told = await lookups.behind(session, run, blame.trailers, path)
        said = {"commit": blame.commit, "author": blame.author, "summary": blame.summary, "text": blame.text}
        return {"path": path, "line": line, **said, "trailers": dict(blame.trailers), **told}

    facts = do(work)
    if as_json:
        _print_json(facts)
        return 0
    console = screen()
    console.print(Text(f"{path}:{line}  {facts['text'].strip()}", style="bold"))
    console.print(Text(f"  commit   {facts['commit'][:12]} by {facts['author']}: {facts['summary']}"))
    task = facts["task"]
    if task is not None:
        console.print(Text(f"  task     {task['key']} {task['title']} ({task['kind']}, {task['status']})"))
        for criterion in task["acceptance_criteria"]:
            console.print(Text(f"           - {criterion}"))
    for trailer, value in facts["trailers"].items():
        console.print(Text(f"  {trailer.lower():<8} {value}"))
    console.print(Text(f"  cost     ${facts['cost_usd']} in {facts['model_calls']} model calls"))
    for finding in facts["findings"]:
        console.print(Text(f"  finding  {finding['severity']} {finding['rule']} ({finding['status']})"))
    return 0


def doctor(*, deep: bool, as_json: bool) -> int:
    """Tell how every part is, and whether every invariant holds; the exit code is 1 when one fails."""
    checks = asyncio.run(_examine(deep=deep))
    if as_json:
        _print_json([{"name": c.name, "status": c.status, "sentence": c.sentence, "advice": c.advice} for c in checks])
    else:
        console, wide = screen(), max(12, *(len(check.name) for check in checks))
        for check in checks:
            mark, style = _MARKS[check.status]
            console.print(Text.assemble((mark, style), f"  {check.name:<{wide}} {check.sentence}"))
            if check.advice:
                console.print(Text(f"{'':<{wide + 8}}{check.advice}", style="dim"))
    return 1 if any(check.status == "fail" for check in checks) else 0


async def _examine(*, deep: bool) -> list[Check]:
    settings = Settings()
    checks = await examination.examine(settings)
    return checks + await examination.examine_rows(settings) if deep else checks
