"""A stage for the graph without database and worker: real git, sandbox, tools and checks, replies from a function.

It does what the executor does at its edges: it stops at an open question and at the end of the run.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from langgraph.checkpoint.memory import InMemorySaver

from backend.adapters.sandbox import Sandbox
from backend.adapters.toolbox.worktree import WorktreeToolbox
from backend.adapters.workspace import GitWorkspace
from backend.agents.prompt import installed
from backend.domain.config import RunConfig
from backend.domain.ids import DEFAULT_TENANT
from backend.domain.model import Message, ModelReply, ModelRequest, Position, ToolCall, Usage
from backend.domain.ports import Checks, RunContext, Seat, Toolbox, Visit, Worktree
from backend.domain.question import Answer
from backend.domain.recording import Recording, place_of
from backend.domain.role import Role
from backend.domain.run import RunFacts
from graphs.software_company import GRAPH

Replies = Callable[[ModelRequest, Position], ModelReply]


def call(name: str, **arguments: Any) -> tuple[str, dict[str, Any]]:
    """A tool call for `reply`."""
    return name, arguments


def reply(
    *calls: tuple[str, Any], content: str = "", finish_reason: Any = None, usage: Usage | None = None
) -> ModelReply:
    """A model's reply; arguments that are text are taken as they are."""
    made = tuple(
        ToolCall(f"call_{at}", name, arguments if isinstance(arguments, str) else json.dumps(arguments))
        for at, (name, arguments) in enumerate(calls)
    )
    reason = finish_reason or ("tool_calls" if calls else "stop")
    return ModelReply(content, made, reason, usage or Usage(100, 10), "scripted", "scripted-1", Decimal("0.001"))


def recorded(recording: Recording) -> Replies:
    """Answer from a recording, as the replay provider does."""

    def answer(request: ModelRequest, position: Position) -> ModelReply:
        place = place_of(request, position)
        step = recording.find(*place)
        assert step is not None, recording.missing(*place)
        said = step.reply_to(request.messages)
        usage = Usage(step.usage.input, step.usage.output, step.usage.cached)
        calls = ((entry.name, entry.arguments) for entry in said.tool_calls)
        found = reply(*calls, content=said.content or "", finish_reason=said.finish_reason, usage=usage)
        return replace(found, model=step.model, cost_usd=Decimal(0))

    return answer


@dataclass
class Stage:
    """One run: what it is played with, and what came of it."""

    workspace: GitWorkspace
    sandbox: Sandbox
    checks: Checks
    facts: RunFacts
    replies: Replies
    answers: dict[str, Answer] = field(default_factory=dict)
    effects: list[dict[str, Any]] = field(default_factory=list)
    requests: list[tuple[Position, ModelRequest, ModelReply]] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    visited: list[str] = field(default_factory=list)
    saver: InMemorySaver = field(default_factory=InMemorySaver)
    waived: frozenset[str] = frozenset()

    async def play(self) -> str:
        """Go on until the run ends or waits; return its status, or WAITING."""
        graph = GRAPH.build().compile(checkpointer=self.saver)
        settings = {"configurable": {"thread_id": "run"}, "recursion_limit": 1000}
        begun = (await graph.aget_state(settings)).created_at is not None
        given = None if begun else GRAPH.initial_state(self.facts)
        async for updates in graph.astream(
            given, settings, context=self.context(), stream_mode="updates", durability="sync"
        ):
            made = [effect for node in updates for effect in self._take(node, updates[node] or {})]
            self.state = (await graph.aget_state(settings)).values
            if any(effect["kind"] == "end_run" for effect in made):
                return str(made[-1]["status"])
            if self.open_questions():
                return "WAITING"
        raise AssertionError("The graph came to its end without an end of the run.")

    def context(self) -> RunContext:
        """What nodes find in their runtime."""
        return RunContext(
            self.facts, self._seat, self.workspace, self.checks, installed(), dict(self.answers), self.waived
        )

    def answer(self, key: str, text: str, by: str = "ada") -> None:
        """Answer a question."""
        self.answers[key] = Answer(key, text, by)

    def open_questions(self) -> list[str]:
        """The keys of the questions nobody has answered."""
        return [effect["key"] for effect in self.of("ask_question") if effect["key"] not in self.answers]

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The effects of a kind, in order."""
        return [effect for effect in self.effects if effect["kind"] == kind]

    def verdicts(self, gate: str) -> list[str]:
        """The decisions of a gate, in order."""
        events = (effect["payload"] for effect in self.of("record_event") if effect["event_type"] == "gate.decided")
        return [event["decision"] for event in events if event["gate"] == gate]

    def tasks(self) -> dict[str, str]:
        """The last status of every task, following the moves as the database would."""
        found: dict[str, str] = {}
        for effect in self.effects:
            if effect["kind"] == "create_task":
                assert effect["key"] not in found
                found[effect["key"]] = effect["status"]
            elif effect["kind"] == "move_task":
                found[effect["key"]] = effect["to"]
        return found

    def _take(self, node: str, update: Mapping[str, Any]) -> list[dict[str, Any]]:
        self.visited.append(node)
        made = copy.deepcopy(update.get("effects", []))
        json.dumps(update, default=_refuse)
        self.effects += made
        return list(made)

    def _seat(self, visit: Visit) -> Seat:
        return _StageSeat(self, visit)


def _refuse(value: Any) -> Any:
    raise AssertionError(f"{value!r} in an update is not plain JSON")


class _StageSeat:
    def __init__(self, stage: Stage, visit: Visit) -> None:
        self.stage, self.visit, self.ordinal = stage, visit, 0

    @property
    def ask(self) -> Callable[[ModelRequest], Any]:
        return self._ask

    async def _ask(self, request: ModelRequest) -> ModelReply:
        self.ordinal += 1
        position = Position(self.visit.node, self.visit.number, self.ordinal, self.visit.task_key)
        _check_protocol(request.messages)
        found = self.stage.replies(request, position)
        self.stage.requests.append((position, copy.deepcopy(request), found))
        return found

    async def note(self, event_type: str, payload: Mapping[str, Any]) -> None:
        """Nobody follows a stage."""

    def toolbox(self, role: Role, tree: Worktree) -> Toolbox:
        stage = self.stage
        return WorktreeToolbox(
            role,
            tree,
            workspace=stage.workspace,
            sandbox=stage.sandbox,
            config=stage.facts.config,
            checks=stage.checks,
        )


def _check_protocol(messages: tuple[Message, ...]) -> None:
    """What every Chat Completions server insists on: each tool call is answered once, right after it was made."""
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            waiting.remove(message["tool_call_id"])
            continue
        assert not waiting, f"calls without an answer: {waiting}"
        waiting = [made["id"] for made in message.get("tool_calls", ())]
        for made in message.get("tool_calls", ()):
            assert isinstance(json.loads(made["function"]["arguments"]), dict)
    assert not waiting, f"calls without an answer: {waiting}"


def facts(brief: str, config: RunConfig, *, project_id: UUID | None = None) -> RunFacts:
    """The facts of a run."""
    return RunFacts(
        run_id=uuid4(),
        project_id=project_id or uuid4(),
        tenant_id=DEFAULT_TENANT,
        number=1,
        project_name="tally",
        brief=brief,
        config=config,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        correlation_id="stage",
    )


async def stage(home: Path, replies: Replies, brief: str, config: RunConfig, checks_of: Callable[..., Checks]) -> Stage:
    """Build a stage; `checks_of(workspace, sandbox, config)` makes the checks."""
    run = facts(brief, config)
    workspace = GitWorkspace(home, run.project_id, run.run_id)
    sandbox = await Sandbox.detect(config.sandbox)
    return Stage(workspace, sandbox, checks_of(workspace, sandbox, config), run, replies)
