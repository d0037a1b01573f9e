"""Structured replies: a forced tool call, validated; one that does not fit is answered once with the error.

Before it replies, a role may be let to look around with read-only tools.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from backend.agents.desk import Desk
from backend.agents.history import assistant, compact, numbered, parse, tool_message
from backend.agents.tools import offer
from backend.domain.model import Message, ModelReply, Opening, ToolCall
from backend.domain.ports import StepFailed
from backend.domain.role import TOOLS

T = TypeVar("T", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Form(Generic[T]):
    """What a reply must look like; `faults` adds what a schema cannot say, `salvage` may mend a second wrong reply."""

    name: str
    description: str
    shape: type[T]
    faults: Callable[[T], Sequence[str]] = lambda reply: ()
    salvage: Callable[[T], T] | None = None

    def tool(self) -> dict[str, Any]:
        """The function that the model is made to call."""
        parameters = self.shape.model_json_schema()
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.description, "parameters": parameters},
        }


async def structured(desk: Desk, opening: Opening, form: Form[T], *, looks: int = 0) -> T:
    """Ask for a reply in the form's shape; the role may call its read-only tools in up to `looks` replies before.

    Raises `StepFailed` with `replies_at_fault` when the reply that was answered with the error does not fit either.
    """
    conversation = _Conversation(desk, opening, form, looks)
    while True:
        reply = await conversation.next()
        looked = await conversation.look(reply)
        if looked:
            continue
        found, errors = conversation.read(reply)
        if found is not None:
            return found
        conversation.answer(reply, errors)


class _Conversation(Generic[T]):
    """One exchange about one form."""

    def __init__(self, desk: Desk, opening: Opening, form: Form[T], looks: int) -> None:
        self.desk, self.opening, self.form = desk, opening, form
        self.looks = looks if desk.toolbox is not None and not desk.fenced else 0
        self.messages: list[Message] = list(opening.messages)
        self.failures = self.turn = 0
        if desk.fenced:
            self.messages.append({"role": "user", "content": _as_text(form)})

    async def next(self) -> ModelReply:
        """Ask; once nothing is left to look at, the form is the only tool and must be called."""
        free = self.looks > 0 and self.failures == 0
        self.messages = compact(self.messages, window_tokens=self.desk.config.context_tokens)
        self.turn += 1
        reply = await self.desk.call(
            self.messages,
            prompt_hash=self.opening.prompt_hash,
            tools=(*(offer(TOOLS[self.desk.role]) if free else ()), self.form.tool()),
            tool_choice="auto" if free else {"type": "function", "function": {"name": self.form.name}},
        )
        reply = numbered(reply, self.turn)
        self.messages.append(assistant(reply))
        return reply

    async def look(self, reply: ModelReply) -> bool:
        """Run the read-only calls of a reply that does not fill in the form yet; False when there are none."""
        calls = reply.tool_calls
        if self.looks <= 0 or self.failures or not calls or any(call.name == self.form.name for call in calls):
            return False
        self.looks -= 1
        for call in calls:
            self.messages.append(tool_message(call.id, await self._observe(call)))
        return True

    async def _observe(self, call: ToolCall) -> str:
        arguments = parse(call.arguments)
        if arguments is None or self.desk.toolbox is None or call.name not in TOOLS[self.desk.role]:
            return f"There is no tool {call.name} for you, or its arguments are not a JSON object."
        return (await self.desk.toolbox.call(call.name, arguments)).text

    def read(self, reply: ModelReply) -> tuple[T | None, list[str]]:
        """Return the reply in its shape, or what is wrong with it."""
        written = _arguments(reply, self.form.name)
        if written is None:
            return None, [_unreadable(reply, self.form.name)]
        try:
            found = self.form.shape.model_validate(written)
        except ValidationError as error:
            return None, [_sentence(fault) for fault in error.errors(include_url=False)[:12]]
        faults = list(self.form.faults(found))
        if faults and self.failures and self.form.salvage is not None:
            found = self.form.salvage(found)
            faults = list(self.form.faults(found))
        return (None, faults[:12]) if faults else (found, [])

    def answer(self, reply: ModelReply, errors: Sequence[str]) -> None:
        """Tell the model what is wrong; the second time the step fails."""
        self.failures += 1
        listed = " ".join(errors)
        if self.failures > 1:
            raise StepFailed(
                "reply_unusable",
                f"The {self.desk.role} model did not fill in {self.form.name}, even told why: {listed[:600]}",
                replies_at_fault=True,
            )
        advice = (
            f"This does not fit and was not used. {listed} Call {self.form.name} again with a whole, corrected reply."
        )
        if reply.tool_calls:
            self.messages += [tool_message(call.id, advice) for call in reply.tool_calls]
        # Observations are left out of the journal's hash; the error is a question of its own, so it stands as one.
        self.messages.append({"role": "user", "content": advice})


def _arguments(reply: ModelReply, name: str) -> dict[str, Any] | None:
    for call in reply.tool_calls:
        if call.name == name:
            return parse(call.arguments) if call.arguments.strip() else None
    # Models without tool calling, and some with it, write the object into their text.
    text = re.sub(r"(?s)^.*?```(?:json)?\s*\n(.*?)\n```.*$", r"\1", reply.content.strip())
    return parse(text) if text.startswith("{") else None


def _unreadable(reply: ModelReply, name: str) -> str:
    if reply.finish_reason == "length":
        return "Your reply was cut at its output limit; say the same in fewer words."
    return f"There was no call of {name} with a JSON object as arguments."


def _sentence(fault: Any) -> str:
    where = ".".join(str(part) for part in fault["loc"]) or "the reply"
    return f"{where}: {fault['msg']}."


def _as_text(form: Form[T]) -> str:
    schema = json.dumps(form.shape.model_json_schema(), sort_keys=True)
    return f"Reply with one JSON object and nothing else, {form.description} It must fit this JSON Schema:\n{schema}"
