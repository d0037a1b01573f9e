"""Starts runs with the code of the release that it is run under, as that release's api would, until its input closes.

Reads one line of JSON: the database, the settings of the runs, and how many shall be on their way at once.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from sqlalchemy import func, select

from backend.adapters.db.engine import connect, sessions_of
from backend.adapters.db.tables import Project, ProjectRun


async def _start(session: Any, order: dict[str, Any]) -> None:
    on_their_way = await session.scalar(select(func.count()).where(ProjectRun.ended_at.is_(None)))
    if on_their_way >= order["most"]:
        return
    project = Project(name="P", brief="go", status="READY", template_slug="standard", template_version=1)
    session.add(project)
    await session.flush()
    run = ProjectRun(
        project_id=project.id,
        number=1,
        graph="chain",
        graph_version="1",
        template_slug="standard",
        template_version=1,
        brief="go",
        config_snapshot=order["config"],
    )
    session.add(run)
    await session.flush()
    project.active_run_id = run.id


async def _main(order: dict[str, Any]) -> None:
    engine = connect(order["url"])
    sessions, closed = sessions_of(engine), asyncio.ensure_future(asyncio.to_thread(sys.stdin.read))
    while not closed.done():
        async with sessions.begin() as session:
            await _start(session, order)
        await asyncio.sleep(0.3)
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(_main(json.loads(sys.stdin.readline())))
