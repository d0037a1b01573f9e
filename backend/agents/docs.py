"""The technical writer: documents that fit the code."""

from __future__ import annotations

from collections.abc import Sequence

from backend.agents.desk import Desk
from backend.agents.loop import Finish, Work, work
from backend.domain.board import TaskSpec


async def write(
    desk: Desk, *, brief: str, tasks: Sequence[TaskSpec], outline: str, finish: Finish | None = None
) -> Work:
    """Write README, decision records and runbook from what is in the repository."""
    begin = desk.prompts.opening(
        "docs",
        brief=brief,
        tasks="\n".join(f"{task['key']}: {task['title']}" for task in tasks),
        outline=outline,
    )
    return await work(desk, begin, finish=finish)
