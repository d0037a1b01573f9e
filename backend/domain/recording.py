"""A recording: the replies of a run, matched by role, node, task, visit and ordinal, with captures for quoted ids."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from backend.domain.model import Message, ModelRequest, Position
from backend.domain.role import Role

Count = Annotated[int, Field(ge=0, le=10_000_000_000)]
Number = Annotated[int, Field(ge=1, le=1_000_000)]
Place = tuple[str, str, str | None, int, int]
"""Role, node, task key, visit, ordinal."""


class Part(BaseModel):
    """The shape of every part of a recording: frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RecordedUsage(Part):
    """Tokens that the provider billed when the step was recorded."""

    input: Count = 0
    output: Count = 0
    cached: Count = 0


class RecordedCall(Part):
    """A tool call; arguments that were no JSON object are kept as text."""

    name: str
    arguments: dict[str, Any] | str = Field(default_factory=dict)


class RecordedReply(Part):
    """What the model said."""

    content: str | None = None
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter", "other"] = "stop"
    tool_calls: tuple[RecordedCall, ...] = ()


class Step(Part):
    """One recorded call."""

    role: Role
    node: str
    visit: Number = 1
    task: str | None = None
    ordinal: Number
    model: str = "recorded"
    usage: RecordedUsage = RecordedUsage()
    captures: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], str] = Field(default_factory=dict)
    """Name -> pattern with one group, searched in the request's text; the last match counts."""
    reply: RecordedReply

    @field_validator("captures")
    @classmethod
    def _patterns_have_one_group(cls, captures: dict[str, str]) -> dict[str, str]:
        for name, pattern in captures.items():
            try:
                groups = re.compile(pattern).groups
            except re.error as broken:
                raise ValueError(f"the capture {name} is not a regular expression: {broken}") from broken
            if groups != 1:
                raise ValueError(f"the capture {name} must have exactly one group, it has {groups}")
        return captures

    @property
    def place(self) -> Place:
        """What the step is matched by."""
        return self.role.value, self.node, self.task, self.visit, self.ordinal

    def reply_to(self, messages: Sequence[Message]) -> RecordedReply:
        """Return the reply with its `{{name}}` captures filled from the request.

        Raises `LookupError` with a sentence where a capture is not found in the request.
        """
        if not self.captures:
            return self.reply
        found = self._captured(request_text(messages))
        return RecordedReply.model_validate(_filled(self.reply.model_dump(), found))

    def _captured(self, text: str) -> dict[str, str]:
        found = {}
        for name, pattern in self.captures.items():
            hits = list(re.finditer(pattern, text))
            if not hits:
                raise LookupError(f"The request of {describe(*self.place)} holds nothing that {pattern!r} matches.")
            found[name] = hits[-1].group(1)
        return found


class Recording(Part):
    """The calls of a run in the order they were made; `brief` is the one it was recorded for."""

    recording: Literal[1] = 1
    title: str
    brief: str = ""
    steps: tuple[Step, ...] = ()

    @model_validator(mode="after")
    def _every_place_is_there_once(self) -> Recording:
        seen: set[Place] = set()
        for step in self.steps:
            if step.place in seen:
                raise ValueError(f"two steps are recorded for {describe(*step.place)}")
            seen.add(step.place)
        object.__setattr__(self, "_index", {step.place: step for step in self.steps})
        return self

    def find(self, role: str, node: str, task: str | None, visit: int, ordinal: int) -> Step | None:
        """Return the step of a call, or None."""
        index: Mapping[Place, Step] = self.__dict__["_index"]
        return index.get((role, node, task, visit, ordinal))

    def missing(self, role: str, node: str, task: str | None, visit: int, ordinal: int) -> str:
        """Say which step the recording lacks, and what to do."""
        return (
            f"The recording '{self.title}' has no step for {describe(role, node, task, visit, ordinal)}; it covers "
            "only the brief it was recorded for. Configure a model provider for other work, or record the run again."
        )


def place_of(request: ModelRequest, position: Position) -> Place:
    """Return what a call is matched by."""
    return request.role.value, position.node, position.task_key, position.visit, position.ordinal


def describe(role: str, node: str, task: str | None, visit: int, ordinal: int) -> str:
    """Name a call in words."""
    of_task = f", task {task}" if task is not None else ""
    return f"role {role}, node {node}{of_task}, visit {visit}, call {ordinal}"


def request_text(messages: Sequence[Message]) -> str:
    """Return the text of a request that captures are searched in: contents and tool-call arguments, in order."""
    parts: list[str] = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            parts.append(content)
        parts.extend(str(call["function"]["arguments"]) for call in message.get("tool_calls") or ())
    return "\n".join(parts)


def _filled(value: Any, found: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        # Only captured names: code in a reply may hold other double braces (templates, workflow files).
        return re.sub(r"\{\{(\w+)\}\}", lambda hit: found.get(hit.group(1), hit.group(0)), value)
    if isinstance(value, dict):
        return {key: _filled(item, found) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(item, found) for item in value]
    return value
