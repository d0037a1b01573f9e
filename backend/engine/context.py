"""What the nodes of a run find in `runtime.context`: seats with a journal, the workspace, the checks, the answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from langgraph.config import get_config

from backend import logs
from backend.domain.ports import Ask, Checks, Prompts, RunContext, Seat, Toolbox, Visit, Workspace, Worktree
from backend.domain.question import Answer
from backend.domain.role import Role
from backend.domain.run import RunFacts
from backend.engine.journal import Books, Journal

Note = Callable[[str, Mapping[str, Any]], Awaitable[None]]


class Workbench(Protocol):
    """The hands of one run: its files, its checks, and the tools of its roles."""

    @property
    def workspace(self) -> Workspace:
        """Git."""
        ...

    @property
    def checks(self) -> Checks:
        """Tests, scanners and linters."""
        ...

    def toolbox(self, role: Role, tree: Worktree, note: Note) -> Toolbox:
        """The tools of a role in a worktree; commands are noted as events."""
        ...


Workbenches = Callable[[RunFacts], Awaitable[Workbench]]
"""Makes the workbench of a run when it is taken up."""


class EngineSeat:
    """The seat of one visit; see `backend.domain.ports.Seat`."""

    def __init__(self, books: Books, visit: Visit, bench: Workbench) -> None:
        self._journal = Journal(books, visit)
        self._bench = bench

    @property
    def ask(self) -> Ask:
        """The journalled model call."""
        return self._journal.ask

    async def note(self, event_type: str, payload: Mapping[str, Any]) -> None:
        """Record an event now."""
        await self._journal.note(event_type, payload)

    def toolbox(self, role: Role, tree: Worktree) -> Toolbox:
        """The role's tools in a worktree."""
        return self._bench.toolbox(role, tree, self._journal.note)


class Seats:
    """Gives visits their seats, and remembers which of LangGraph's tasks each visit is."""

    def __init__(self, books: Books, bench: Workbench) -> None:
        self.visits: dict[str, Visit] = {}
        self._books, self._bench = books, bench

    def __call__(self, visit: Visit) -> Seat:
        """The seat of a visit; its log lines carry node and task from here on."""
        task = get_config()["configurable"].get("__pregel_task_id")
        if task is not None:
            self.visits[task] = visit
        logs.bind_rest(node=visit.node, task=visit.task_key)
        return EngineSeat(self._books, visit, self._bench)


def context_of(
    facts: RunFacts,
    seats: Seats,
    bench: Workbench,
    prompts: Prompts,
    answers: Mapping[str, Answer],
    waived: frozenset[str] = frozenset(),
) -> RunContext:
    """What a graph gets of the run."""
    return RunContext(facts, seats, bench.workspace, bench.checks, prompts, answers, waived)
