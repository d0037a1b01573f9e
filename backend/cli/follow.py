"""A run as it happens: one calm line for what matters, a moving line for the rest where there is a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import UUID

import typer
from rich.console import Console
from rich.status import Status
from rich.text import Text

from backend.adapters.bus import Followers
from backend.api import words
from backend.api.streams import Streams
from backend.cli.place import Company
from backend.cli.screen import screen, typed
from backend.domain.question import QuestionStatus
from backend.domain.run import ENDED, RunStatus
from backend.operations import pages, questions, runs
from backend.settings import Settings

EXIT_CODES = {
    RunStatus.COMPLETED: 0,
    RunStatus.STOPPED_BUDGET: 3,
    RunStatus.STOPPED_SECURITY: 4,
    RunStatus.FAILED: 5,
    RunStatus.STOPPED_USER: 6,
    RunStatus.WAITING: 7,
    RunStatus.PAUSED: 7,
}
INTERRUPTED = 130
"""The exit code of a command that a signal ended, as shells have it."""
SPEND_EVERY = 8
"""Calls between two printed lines of spend."""
_STYLES = {"approve": "green", "pass": "green", "fail": "red", "stop": "red", "again": "yellow", "fix": "yellow"}


@dataclass
class Progress:
    """What was seen of a run so far, and how it is shown."""

    console: Console
    status: Status | None = None
    tasks: dict[str, str] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    calls: int = 0
    tokens: int = 0
    usd: Decimal = Decimal(0)
    node: str = ""
    told: int = 0
    """Calls when the spend was last printed."""
    saying: dict[str, str] = field(default_factory=dict)
    """Lines that models are in the middle of, by who says them."""

    def show(self, kind: str, payload: Mapping[str, Any]) -> None:
        """Take one event in."""
        line = self._line(kind, payload)
        if line is not None:
            who, text, style = line
            row = Text.assemble((f"{who:<11}", "bold cyan"), (text, style))
            row.truncate(max(40, self.console.width - 1), overflow="ellipsis")
            self.console.print(row)
        if self.status is not None:
            done = sum(status == "DONE" for status in self.tasks.values())
            self.status.update(f"{self.node or 'queued'} · tasks {done}/{len(self.tasks)} · {self.spend}")

    def hear(self, said: Mapping[str, Any]) -> None:
        """Take words of a model in; whole lines are shown."""
        who = f"{said['role']} → {said['tool']}" if said.get("tool") else str(said["role"])
        *lines, rest = (self.saying.get(who, "") + said["text"]).split("\n")
        self.saying[who] = rest[-2_000:]
        for line in lines:
            self._show_words(who, line)

    def _show_words(self, who: str, line: str) -> None:
        if line.strip():
            line = "".join(letter if letter.isprintable() else " " for letter in line)
            self.console.print(Text.assemble((f"{who:<11}", "cyan"), (f"│ {line}", "dim")))

    @property
    def spend(self) -> str:
        """What the run has used so far."""
        return f"{self.calls} model calls · {self.tokens:,} tokens · ${self.usd:.4f}"

    def _line(self, kind: str, payload: Mapping[str, Any]) -> tuple[str, str, str] | None:
        noun = kind.partition(".")[0]
        shown = getattr(self, f"_{noun}", None)
        result: tuple[str, str, str] | None = shown(kind, payload) if shown is not None else None
        return result

    def _run(self, kind: str, payload: Mapping[str, Any]) -> tuple[str, str, str] | None:
        said, reason = _spoken(kind.partition(".")[2]), payload.get("reason")
        return "run", f"{said}: {_spoken(str(reason))}" if reason else said, "bold"

    def _node(self, kind: str, payload: Mapping[str, Any]) -> tuple[str, str, str] | None:
        if payload.get("next"):
            self.node = ", ".join(dict.fromkeys(payload["next"]))
        # Where a terminal moves a line with the spend, it need not be printed as well.
        if self.status is not None or self.calls - self.told < SPEND_EVERY:
            return None
        self.told = self.calls
        return "spend", f"{self.spend} · after {payload.get('node', '')}", "dim"

    def _task(self, kind: str, payload: Mapping[str, Any]) -> tuple[str, str, str] | None:
        key = str(payload.get("key", "?"))
        if kind == "task.created":
            self.tasks[key] = "CREATED"
            self.titles[key] = str(payload.get("title", ""))
            return "plan", f"{key} · {self.titles[key]}", ""
        if kind != "task.moved":
            return None
        self.tasks[key] = str(payload.get("to"))
        again = f" (round {payload['iteration']})" if (payload.get("iteration") or 0) > 1 else ""
        if self.tasks[key] == "READY" and not again:
            return None
        return "task", f"{key} {self.tasks[key].lower().replace('_', ' ')}{again} · {self.titles.get(key, '')}", "dim"

    def _model(self, kind: str, payload: Mapping[str, Any]) -> tuple[str, str, str] | None:
        for who in [who for who in self.saying if who.split(" ")[0] == payload.get("role")]:
            self._show_words(who, self.saying.pop(who))
        if kind == "model.failed":
            return str(payload.get("role", "model")), f"a call failed: {payload.get('error')}", "yellow"
        self.calls += 1
        self.tokens += int(payload.get("tokens_input", 0)) + int(payload.get("tokens_output", 0))
        self.usd += Decimal(str(payload.get("cost_usd") or 0))
        return None

    def _gate(self, kind: str, payload: Mapping[str, Any]) -> tuple[str, str, str]:
        decision = str(payload.get("decision", ""))
        task = f" {payload['task']}" if payload.get("task") else ""
        style = _STYLES.get(decision, "yellow" if decision not in {"", "accept"} else "green")
        return "gate", f"{payload.get('gate')}{task}: {decision} · {payload.get('reason', '')}", style

    def _finding(self, kind: str, payload: Mapping[str, Any]) -> tuple[str, str, str]:
        where = payload.get("path") or ""
        return "finding", f"{payload.get('severity', '')} {payload.get('rule', '')} {where}".strip(), "yellow"

    def _question(self, kind: str, payload: Mapping[str, Any]) -> tuple[str, str, str]:
        return "question", str(payload.get("text") or payload.get("key") or ""), "bold yellow"

    def _budget(self, kind: str, payload: Mapping[str, Any]) -> tuple[str, str, str]:
        facts = payload.get("reason") or ", ".join(f"{key} {value}" for key, value in payload.items())
        return "budget", f"{_spoken(kind.partition('.')[2])}: {facts}", "yellow"

    def _commit(self, kind: str, payload: Mapping[str, Any]) -> tuple[str, str, str]:
        what = "merged" if payload.get("merge") else "committed"
        task = f" for {payload['task']}" if payload.get("task") else ""
        return str(payload.get("role", "git")), f"{what} {str(payload.get('commit', ''))[:10]}{task}", "green"


def _spoken(word: str) -> str:
    """A code as people say it; a sentence stays as it is."""
    return word if " " in word else word.replace("_", " ")


@contextmanager
def left_alone(settings: Settings, name: str = "last") -> Iterator[None]:
    """A signal ends what follows a run in somebody else's company, and nothing of the run."""
    try:
        yield
    except KeyboardInterrupt:
        back = f"`{typed(settings)} watch {name}` comes back to it."
        screen(errors=True).print(Text(f"The run is left as it is, only nobody watches it here: {back}"))
        raise typer.Exit(INTERRUPTED) from None


async def to_the_end(
    company: Company, run_id: UUID, *, after: int = 0, tokens: bool = False, as_json: bool = False
) -> int:
    """Show a run until it ends or waits for people; return the exit code that tells which."""
    assert company.settings.redis_url is not None
    console = screen()
    followers = Followers(company.settings.redis_url.get_secret_value())
    streams = Streams(company.sessions, followers)
    progress = Progress(console)
    if console.is_terminal and not as_json:
        progress.status = console.status("queued")
        progress.status.start()
    try:
        entries = words.follow(streams, followers, run_id, after) if tokens else streams.follow(run_id, after)
        async for entry in entries:
            if entry is None:
                continue
            if as_json:
                print(entry.data, flush=True)  # noqa: T201 - the output that was asked for
            elif isinstance(entry, words.Words):
                progress.hear(json.loads(entry.data))
            else:
                progress.show(entry.type, json.loads(entry.data)["payload"])
            if entry.type in {"run.waiting", "run.paused"} and (code := await _held(company, run_id, console, as_json)):
                return code
    finally:
        if progress.status is not None:
            progress.status.stop()
        await streams.close()
        await followers.close()
    return await code_of(company, run_id)


async def code_of(company: Company, run_id: UUID) -> int:
    """The exit code for where a run stands."""
    async with company.sessions() as session:
        run = await runs.get(session, run_id)
        return EXIT_CODES.get(RunStatus(run.status), 1)


async def _held(company: Company, run_id: UUID, console: Console, as_json: bool) -> int | None:
    """The exit code of a run that waits for people, whom it tells so; None when it goes on by itself."""
    async with company.sessions() as session:
        run = await runs.get(session, run_id)
        if run.status in ENDED or run.status not in {RunStatus.WAITING, RunStatus.PAUSED}:
            return None
        wanted = pages.PageRequest(limit=20)
        page = await questions.page(session, wanted, run_id=run_id, status=QuestionStatus.OPEN)
    if not as_json:
        command = typed(Settings())
        for item in map(json.loads, page.items):
            options = f" ({' | '.join(item['options'])})" if item["options"] else ""
            console.print(Text(f"\n{item['text']}{options}", style="bold yellow"))
            console.print(Text(f"  {command} answer {item['id']} '…'"))
        if not page.items:
            console.print(Text(f"The run holds; `{command} resume {str(run_id)[:13]}` lets it go on."))
    return EXIT_CODES[RunStatus(run.status)]
