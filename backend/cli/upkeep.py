"""Commands that keep an installation in order: what is removed, and what is mended."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.text import Text

from backend.adapters.db.pool import open_pool
from backend.cli.place import Company, do
from backend.cli.screen import screen
from backend.engine.garbage import Garbage, Heap
from backend.engine.repair import Clinic, Repaired


def gc(*, dry_run: bool, as_json: bool) -> int:
    """Remove what is kept no longer, or tell what would go."""

    async def work(company: Company) -> list[Heap]:
        assert company.settings.database_url is not None
        pool = await open_pool(company.settings.database_url.get_secret_value(), size=2)
        try:
            settings = company.settings
            garbage = Garbage(company.sessions, pool, company.bell, settings.home, settings.retention)
            return await garbage.collect(dry=dry_run)
        finally:
            await pool.close()

    heaps = do(work)
    if as_json:
        print(json.dumps([asdict(heap) for heap in heaps], indent=2))  # noqa: T201 - the output that was asked for
        return 0
    what = "would go" if dry_run else "removed"
    for heap in heaps:
        told = f"{heap.count:>8,} {what}  {_shown(heap.size):>10}  {heap.name}: {heap.sentence}"
        screen().print(Text(told), soft_wrap=True)
    return 0


def repair(*, apply: bool, as_json: bool) -> int:
    """Mend what a rule can mend, or tell what it would be; 1 when something is left."""

    async def work(company: Company) -> tuple[list[Repaired], list[str]]:
        settings = company.settings
        clinic = Clinic(company.sessions, company.bell, settings.home, grace=settings.engine.reaper_seconds)
        done = await clinic.mend(dry=not apply)
        return done, await clinic.left()

    done, left = do(work)
    if as_json:
        told = {"repairs": [asdict(one) for one in done], "left": left}
        print(json.dumps(told, indent=2, default=str))  # noqa: T201 - the output that was asked for
    else:
        _tell(done, left, "mended" if apply else "would mend")
    return 1 if left else 0


def _tell(done: list[Repaired], left: list[str], how: str) -> None:
    console = screen()
    for one in done:
        console.print(Text(f"{how}  {one.rule:<15} {one.about}  {one.told}"), soft_wrap=True)
    for sentence in left:
        console.print(Text(f"left  {sentence}", style="yellow"), soft_wrap=True)
    if not done and not left:
        console.print(Text("Nothing is broken."))


def _shown(size: int) -> str:
    return f"{size / 1_000_000:,.1f} MB" if size else ""
