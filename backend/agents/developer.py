"""The developer: works on one task in a worktree until it submits, asks or runs into a limit."""

from __future__ import annotations

from collections.abc import Sequence

from backend.agents.desk import Desk
from backend.agents.loop import Finish, Work, work
from backend.domain.board import TaskSpec
from backend.domain.plan import criterion_id


async def develop(
    desk: Desk,
    *,
    brief: str,
    task: TaskSpec,
    approach: str,
    outline: str,
    accepted_tests: Sequence[str] = (),
    feedback: Sequence[str] = (),
    summary: str = "",
    conflict: str = "",
    finish: Finish | None = None,
) -> Work:
    """Work on a task; `feedback` is what must be mended or was answered, `summary` what was said of earlier work."""
    begin = desk.prompts.opening(
        "developer",
        brief=brief,
        task=task,
        criteria=criteria(task),
        approach=approach,
        outline=outline,
        accepted_tests="\n".join(sorted(accepted_tests)),
        feedback="\n".join(f"- {entry}" for entry in feedback),
        summary=summary,
        conflict=conflict,
    )
    return await work(desk, begin, finish=finish)


def criteria(task: TaskSpec) -> str:
    """Return the task's acceptance criteria with their ids, a line each."""
    lines = (f"{criterion_id(task['key'], at)}: {text}" for at, text in enumerate(task["criteria"], 1))
    return "\n".join(lines)
