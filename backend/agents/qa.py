"""QA: writes tests from acceptance criteria; programs run them and decide."""

from __future__ import annotations

from collections.abc import Sequence

from backend.agents.desk import Desk
from backend.agents.developer import criteria
from backend.agents.loop import Finish, Work, work
from backend.domain.board import TaskSpec


async def write_tests(
    desk: Desk,
    *,
    brief: str,
    tasks: Sequence[TaskSpec],
    outline: str,
    failures: Sequence[str] = (),
    summaries: Sequence[str] = (),
    finish: Finish | None = None,
) -> Work:
    """Write tests for the criteria of the tasks, or look again at accepted ones that still fail (`failures`)."""
    begin = desk.prompts.opening(
        "qa",
        brief=brief,
        criteria="\n".join(f"{task['title']}\n{criteria(task)}" for task in tasks),
        outline=outline,
        failures="\n\n".join(failures),
        summaries="\n\n".join(summaries),
    )
    return await work(desk, begin, finish=finish)
