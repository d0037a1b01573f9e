"""The hands of a run from the real adapters: git, the sandbox, the checks and the tools."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backend.adapters.checks.program import ProgramChecks
from backend.adapters.sandbox import Sandbox
from backend.adapters.toolbox.worktree import WorktreeToolbox
from backend.adapters.workspace import GitWorkspace, git
from backend.domain.ports import Checks, Toolbox, Worktree
from backend.domain.role import Role
from backend.domain.run import RunFacts
from backend.engine.context import Note, Workbench, Workbenches
from backend.settings import Settings


class RealWorkbench:
    """See `backend.engine.context.Workbench`."""

    def __init__(self, home: Path, facts: RunFacts, sandbox: Sandbox) -> None:
        self._config, self._sandbox = facts.config, sandbox
        self.workspace = GitWorkspace(home, facts.project_id, facts.run_id)
        self.checks: Checks = ProgramChecks(self.workspace, sandbox, facts.config)

    def toolbox(self, role: Role, tree: Worktree, note: Note) -> Toolbox:
        """The tools of a role in a worktree; each command is an event."""

        async def told(command: Mapping[str, Any]) -> None:
            await note("command.finished", command)

        return WorktreeToolbox(
            role,
            tree,
            workspace=self.workspace,
            sandbox=self._sandbox,
            config=self._config,
            checks=self.checks,
            on_command=told,
        )


def workbenches(settings: Settings) -> Workbenches:
    """Makes the workbench of each run; raises `Unavailable` without git, or where no sandbox passes its self-test."""

    async def make(facts: RunFacts) -> Workbench:
        # Before anything is paid for.
        git.program()
        sandbox = await Sandbox.detect(facts.config.sandbox, commands=settings.engine.commands)
        return RealWorkbench(settings.home, facts, sandbox)

    return make
