"""Commands that change a run, and the one that follows it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

from rich.text import Text

from backend.adapters.db.engine import transaction
from backend.adapters.db.tables import ProjectRun
from backend.cli import follow
from backend.cli.place import Company, do, person
from backend.cli.screen import screen
from backend.domain.config import Patch
from backend.errors import Invalid
from backend.operations import budgets, findings, forks, lookups, questions, repositories, runs
from backend.settings import Settings

_VERBS: dict[str, Callable[..., Awaitable[ProjectRun]]] = {
    "pause": runs.pause,
    "pause_now": partial(runs.pause, at_once=True),
    "resume": runs.resume,
    "stop": runs.stop,
}


def order(verb: str, name: str) -> int:
    """Pause, resume or stop a run."""

    async def work(company: Company) -> int:
        async with transaction(company.sessions, company.bell) as session:
            run = await _VERBS[verb](session, await lookups.run_named(session, name), by=person())
            _say(run)
        return 0

    return do(work)


def retry(name: str, usd: Decimal | None, tokens: int | None, seconds: int | None) -> int:
    """Let an ended run go on."""

    async def work(company: Company) -> int:
        async with transaction(company.sessions, company.bell) as session:
            limits = runs.Limits(tokens=tokens, usd=usd, seconds=seconds)
            _say(await runs.retry(session, await lookups.run_named(session, name), by=person(), limits=limits))
        return 0

    return do(work)


def fork(name: str, checkpoint: str | None, patch: Patch) -> int:
    """Begin another run from a checkpoint."""
    try:
        wanted = None if checkpoint is None else UUID(checkpoint)
    except ValueError:
        raise Invalid(f"`{checkpoint}` is no id of a checkpoint; GET /api/runs/…/checkpoints lists them.") from None

    async def work(company: Company) -> int:
        branch = partial(repositories.branch_at, company.settings.home)
        place = forks.Place(company.graphs.find, company.faults, branch)
        async with transaction(company.sessions, company.bell) as session:
            run_id = await lookups.run_named(session, name)
            run = await forks.fork(session, run_id, checkpoint_id=wanted, patch=patch, place=place, by=person())
            _say(run)
            screen().print(Text(f"It goes on from {run.parent_checkpoint_id} of run {run.parent_run_id}."))
        return 0

    return do(work)


def answer(name: str, text: str) -> int:
    """Answer a question."""

    async def work(company: Company) -> int:
        async with transaction(company.sessions, company.bell) as session:
            question = await questions.answer(session, await lookups.question_named(session, name), text, by=person())
            _say(await runs.get(session, question.run_id))
        return 0

    return do(work)


def waive(name: str, by: str, reason: str, until: datetime) -> int:
    """Let a finding pass until an instant."""

    async def work(company: Company) -> int:
        async with transaction(company.sessions, company.bell) as session:
            finding_id = await lookups.finding_named(session, name)
            found = await findings.waive(session, finding_id, by=by, reason=reason, until=until)
            where = f" in {found.path}" if found.path else ""
            screen().print(Text(f"{found.rule}{where} passes until {until:%Y-%m-%d}, by {found.waived_by}."))
        return 0

    return do(work)


def budget(project: str | None, limits: budgets.Limits, *, change: bool) -> int:
    """Show or set the limits of a project, or of the month."""

    async def work(company: Company) -> dict[str, Any]:
        async with transaction(company.sessions, company.bell) as session:
            if project is None:
                return await (budgets.limit_month(session, limits) if change else budgets.of_month(session))
            owner = _project_id(project)
            if change:
                return await budgets.limit_project(session, owner, limits)
            return await budgets.of_project(session, owner)

    facts = do(work)
    for unit in ("usd", "tokens", "seconds"):
        most = facts["limits"][unit]
        spent = f", spent {facts['spent'][unit]}, held {facts['held'][unit]}" if facts["spent"] else ""
        screen().print(Text(f"{unit}: {'no limit' if most is None else f'at most {most}'}{spent}"))
    return 0


def _project_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as error:
        raise Invalid(f"`{text[:100]}` is no id of a project; `company runs --json` names it.") from error


def watch(name: str, after: int, *, tokens: bool, as_json: bool) -> int:
    """Follow a run to its end."""

    async def work(company: Company) -> int:
        async with company.sessions() as session:
            run_id = await lookups.run_named(session, name)
        return await follow.to_the_end(company, run_id, after=after, tokens=tokens, as_json=as_json)

    settings = Settings()
    with follow.left_alone(settings, name):
        return do(work, settings)


def _say(run: ProjectRun) -> None:
    asked = f", asked to {run.requested}" if run.requested != "none" else ""
    screen().print(Text(f"Run {run.number} ({run.id}) is {run.status}{asked}."))
