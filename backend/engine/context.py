"""What the nodes of a run find in `runtime.context`: seats with a journal, the workspace, the checks, the answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from inspect import iscoroutinefunction
from typing import Any, Protocol, cast

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


Settled = Callable[[], Awaitable[None]]
"""Waits until all that the run has committed is durable; raises where it cannot be any more."""


class _Settled:
    """What touches the world, each of whose async methods first waits for what the run has committed.

    A node may begin before the checkpoint that it follows is durable. What it does to the world may not: if the
    checkpoint were lost, the nodes before would run again behind its back.
    """

    def __init__(self, inner: Any, settled: Settled) -> None:
        self._inner, self._settled = inner, settled

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not iscoroutinefunction(found):
            return found

        async def afterwards(*args: Any, **options: Any) -> Any:
            await self._settled()
            return await found(*args, **options)

        return afterwards


class EngineSeat:
    """The seat of one visit; see `backend.domain.ports.Seat`."""

    def __init__(self, books: Books, visit: Visit, bench: Workbench, settled: Settled) -> None:
        self._journal: Any = _Settled(Journal(books, visit), settled)
        self._bench = bench
        self._settled = settled

    @property
    def ask(self) -> Ask:
        """The journalled model call."""
        asking: Ask = self._journal.ask
        return asking

    async def note(self, event_type: str, payload: Mapping[str, Any]) -> None:
        """Record an event now."""
        await self._journal.note(event_type, payload)

    def toolbox(self, role: Role, tree: Worktree) -> Toolbox:
        """The role's tools in a worktree."""
        return cast(Toolbox, _Settled(self._bench.toolbox(role, tree, self._journal.note), self._settled))


class Seats:
    """Gives visits their seats, and remembers which of LangGraph's tasks each visit is."""

    def __init__(self, books: Books, bench: Workbench, settled: Settled, visits: dict[str, Visit]) -> None:
        self.visits = visits
        self._books, self._bench, self._settled = books, bench, settled

    def __call__(self, visit: Visit) -> Seat:
        """The seat of a visit; its log lines carry node and task from here on."""
        task = get_config()["configurable"].get("__pregel_task_id")
        if task is not None:
            self.visits[task] = visit
        logs.bind_rest(node=visit.node, task=visit.task_key)
        return EngineSeat(self._books, visit, self._bench, self._settled)


def context_of(
    facts: RunFacts,
    seats: Seats,
    bench: Workbench,
    settled: Settled,
    prompts: Prompts,
    answers: Mapping[str, Answer],
    waived: frozenset[str] = frozenset(),
) -> RunContext:
    """What a graph gets of the run."""
    workspace = cast(Workspace, _Settled(bench.workspace, settled))
    checks = cast(Checks, _Settled(bench.checks, settled))
    return RunContext(facts, seats, workspace, checks, prompts, answers, waived, settled)
