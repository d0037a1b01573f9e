"""The devops engineer: deployment files that real linters judge."""

from __future__ import annotations

from collections.abc import Sequence

from backend.agents.desk import Desk
from backend.agents.loop import Finish, Work, work
from backend.agents.security import listed
from backend.domain.ports import ScanFinding


async def prepare(
    desk: Desk, *, brief: str, outline: str, findings: Sequence[ScanFinding] = (), finish: Finish | None = None
) -> Work:
    """Write Dockerfile, workflow and compose file; `findings` is what was found in those that are there already."""
    begin = desk.prompts.opening("devops", brief=brief, outline=outline, findings=listed(findings))
    return await work(desk, begin, finish=finish)
