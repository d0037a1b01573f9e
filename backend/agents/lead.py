"""The lead: reads the real diff, with read-only tools, and approves it or sends it back."""

from __future__ import annotations

from collections.abc import Sequence

from backend.agents.desk import Desk
from backend.agents.developer import criteria
from backend.agents.reply import Form, structured
from backend.domain import review as reviews
from backend.domain.board import TaskSpec
from backend.domain.ports import Diff
from backend.domain.review import Review

LOOKS = 6
"""Replies in which the lead may read files before it must decide."""


async def review(desk: Desk, *, task: TaskSpec, diff: Diff, summary: str, feedback: Sequence[str] = ()) -> Review:
    """Judge a change. A finding off the diff is refused, and dropped when it comes again."""
    begin = desk.prompts.opening(
        "lead",
        task=task,
        criteria=criteria(task),
        summary=summary or "(nothing)",
        diff=diff.text,
        truncated=diff.truncated,
        feedback="\n".join(f"- {entry}" for entry in feedback),
    )
    form = Form(
        "review",
        "your decision on the change.",
        Review,
        faults=lambda found: reviews.faults(found, diff),
        salvage=lambda found: reviews.within(found, diff),
    )
    return await structured(desk, begin, form, looks=LOOKS)
