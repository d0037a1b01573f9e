"""Commands that change a run, and the one that follows it."""

from __future__ import annotations

from decimal import Decimal

from rich.text import Text

from backend.adapters.db.engine import transaction
from backend.adapters.db.tables import ProjectRun
from backend.cli import follow
from backend.cli.place import Company, do
from backend.cli.screen import screen
from backend.operations import lookups, questions, runs
from backend.settings import Settings

BY = "cli"
_VERBS = {"pause": runs.pause, "resume": runs.resume, "stop": runs.stop}


def order(verb: str, name: str) -> int:
    """Pause, resume or stop a run."""

    async def work(company: Company) -> int:
        async with transaction(company.sessions, company.bell) as session:
            run = await _VERBS[verb](session, await lookups.run_named(session, name), by=BY)
            _say(run)
        return 0

    return do(work)


def retry(name: str, usd: Decimal | None, tokens: int | None) -> int:
    """Let an ended run go on."""

    async def work(company: Company) -> int:
        async with transaction(company.sessions, company.bell) as session:
            limits = runs.Limits(tokens=tokens, usd=usd)
            _say(await runs.retry(session, await lookups.run_named(session, name), by=BY, limits=limits))
        return 0

    return do(work)


def answer(name: str, text: str) -> int:
    """Answer a question."""

    async def work(company: Company) -> int:
        async with transaction(company.sessions, company.bell) as session:
            question = await questions.answer(session, await lookups.question_named(session, name), text, by=BY)
            _say(await runs.get(session, question.run_id))
        return 0

    return do(work)


def watch(name: str, after: int, *, as_json: bool) -> int:
    """Follow a run to its end."""

    async def work(company: Company) -> int:
        async with company.sessions() as session:
            run_id = await lookups.run_named(session, name)
        return await follow.to_the_end(company, run_id, after=after, as_json=as_json)

    settings = Settings()
    with follow.left_alone(settings, name):
        return do(work, settings)


def _say(run: ProjectRun) -> None:
    asked = f", asked to {run.requested}" if run.requested != "none" else ""
    screen().print(Text(f"Run {run.number} ({run.id}) is {run.status}{asked}."))
