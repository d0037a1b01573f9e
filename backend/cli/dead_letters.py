"""Commands about what could not be executed."""

from __future__ import annotations

import json

from rich.text import Text

from backend.adapters.db.engine import transaction
from backend.adapters.db.tables import DeadLetter
from backend.cli.place import Company, do, person
from backend.cli.screen import screen
from backend.operations import dead_letters, lookups, pages


def listed(*, as_json: bool) -> int:
    """List dead letters, newest first."""

    async def work(company: Company) -> tuple[str, ...]:
        async with company.sessions() as session:
            return (await dead_letters.page(session, pages.PageRequest(limit=200))).items

    items = do(work)
    if as_json:
        print(f"[{','.join(items)}]")  # noqa: T201 - the output that was asked for
        return 0
    for letter in map(json.loads, items):
        done = "replayed" if letter["replayed_at"] else "waits"
        screen().print(Text(f"{letter['id']}  {done:<8}  run {letter['run_id']}  {letter['error']}"), soft_wrap=True)
    if not items:
        screen().print("There are no dead letters.")
    return 0


def show(name: str) -> int:
    """Print one dead letter as JSON."""

    async def work(company: Company) -> str:
        async with company.sessions() as session:
            letter_id = await lookups.dead_letter_named(session, name)
            return await dead_letters.VIEW.one(session, DeadLetter.id == letter_id)

    print(json.dumps(json.loads(do(work)), ensure_ascii=False, indent=2))  # noqa: T201 - the output that was asked for
    return 0


def replay(name: str) -> int:
    """Let the run of a dead letter go on."""

    async def work(company: Company) -> int:
        async with transaction(company.sessions, company.bell) as session:
            letter_id = await lookups.dead_letter_named(session, name)
            letter = await dead_letters.replay(session, letter_id, by=person())
            screen().print(Text(f"Run {letter.run_id} goes on from its last checkpoint."))
        return 0

    return do(work)
