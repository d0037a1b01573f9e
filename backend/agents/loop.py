"""The loop in which a role works with tools, and the limits that end it.

It ends on the second `submit`, a question to people, the limit of steps, three malformed or cut replies in a row, or a
repeat. Budget, pause and stop come out of `ask` as exceptions and pass through.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from backend.agents import fenced
from backend.agents.desk import Desk
from backend.agents.history import assistant, compact, numbered, parse, steady, tool_message
from backend.agents.prompt import fence
from backend.agents.repeats import Repeats
from backend.agents.tools import offer
from backend.domain.model import Message, ModelReply, Opening, ToolCall
from backend.domain.ports import Observation, Toolbox
from backend.domain.role import TOOLS

IN_A_ROW = 3
"""Malformed, or cut, replies in a row that end the loop."""
REFUSALS = 3
"""How often a second `submit` is answered with an objection before the work ends with it."""

Finish = Callable[[], Awaitable[str | None]]
"""Says what still speaks against ending the work, or None."""


class Ending(StrEnum):
    """How the loop ended."""

    SUBMITTED = "submitted"
    ASKED = "asked"
    STEPS = "steps"
    MALFORMED = "malformed"
    CUT = "cut"
    REPEATED = "repeated"


WHY: dict[Ending, str] = {
    Ending.SUBMITTED: "The work was submitted.",
    Ending.ASKED: "The work waits for a person's answer.",
    Ending.STEPS: "The limit of steps was reached before the work was submitted.",
    Ending.MALFORMED: "The model called tools wrongly three times in a row.",
    Ending.CUT: "The model's replies were cut at the output limit three times in a row.",
    Ending.REPEATED: "The model repeated the same call with the same result, also after it was told so.",
}


@dataclass(slots=True)
class Work:
    """What came of the loop; `objection` is what spoke against ending when it ended all the same."""

    ending: Ending = Ending.STEPS
    summary: str = ""
    question: str = ""
    options: tuple[str, ...] = ()
    objection: str | None = None
    steps: int = 0
    tools: dict[str, int] = field(default_factory=dict)

    @property
    def why(self) -> str:
        """One sentence on how it ended."""
        return WHY[self.ending]


async def work(desk: Desk, opening: Opening, *, finish: Finish | None = None) -> Work:
    """Let the role work in its toolbox until it ends; see the module for how it may end."""
    assert desk.toolbox is not None, "the loop needs a toolbox"
    return await _Loop(desk, desk.toolbox, opening, finish).run()


class _Loop:
    def __init__(self, desk: Desk, toolbox: Toolbox, opening: Opening, finish: Finish | None) -> None:
        self.desk, self.toolbox, self.finish = desk, toolbox, finish
        self.messages: list[Message] = list(opening.messages)
        self.prompt_hash = opening.prompt_hash
        self.names = TOOLS[desk.role] - (frozenset() if desk.may_ask else {"ask_human"})
        self.work = Work()
        self.repeats = Repeats()
        self.pinned: dict[str, str] = {}
        self.malformed = self.cut = self.refused = 0
        self.submitted = self.warned = self.ended = False
        if desk.fenced:
            self._say(desk.prompts.text("fenced", tools=[tool["function"] for tool in offer(self.names)]))

    async def run(self) -> Work:
        while not self.ended and self.work.steps < self.desk.steps:
            self.work.steps += 1
            self.messages = compact(
                self.messages, window_tokens=self.desk.config.context_tokens, pinned=self.pinned.values()
            )
            reply = await self.desk.call(
                self.messages, prompt_hash=self.prompt_hash, tools=offer(self.names), tool_choice="auto"
            )
            await self._take(numbered(reply, self.work.steps))
        return self.work

    async def _take(self, reply: ModelReply) -> None:
        calls = fenced.parse(reply.content) if self.desk.fenced else reply.tool_calls
        self.messages.append(assistant(reply))
        if reply.finish_reason == "length":
            self._answer_cut(calls)
            return
        self.cut = 0
        if not calls:
            self._answer_prose()
            return
        repeated: list[str] = []
        for call in calls:
            seen = await self._call(call)
            self._observe(call, seen)
            self.malformed = self.malformed + 1 if seen.malformed else 0
            if self.malformed >= IN_A_ROW:
                self._end(Ending.MALFORMED)
            if not seen.malformed and call.name != "submit":
                found = self.repeats.note(call.id, call.name, parse(call.arguments) or {}, seen.text, ok=seen.ok)
                repeated = found or repeated
        if repeated and not self.ended:
            self._cut_out(repeated)

    async def _call(self, call: ToolCall) -> Observation:
        arguments = parse(call.arguments)
        if self.ended:
            return Observation("The work has ended; this call was not made.")
        if call.name not in self.names:
            return Observation(
                f"There is no tool {call.name}; yours are {', '.join(sorted(self.names))}.", ok=False, malformed=True
            )
        if arguments is None:
            return Observation(f"The arguments of {call.name} are not a JSON object.", ok=False, malformed=True)
        self.work.tools[call.name] = self.work.tools.get(call.name, 0) + 1
        if call.name == "submit":
            return await self._submit(arguments)
        if call.name == "ask_human":
            return self._ask(arguments)
        return await self.toolbox.call(call.name, arguments)

    def _observe(self, call: ToolCall, seen: Observation) -> None:
        if not seen.ok:
            self.pinned["failure"] = call.id
        if self.desk.fenced:
            # Without tool messages an observation is part of the question; only what stays the same may stand in it.
            self._say(fence(steady(seen.text), f"result of {call.name}"))
        else:
            self.messages.append(tool_message(call.id, seen.text))
        if call.name == "submit":
            self.pinned["diff"] = call.id

    async def _submit(self, arguments: dict[str, Any]) -> Observation:
        summary = arguments.get("summary")
        if not isinstance(summary, str) or not summary.strip():
            return Observation("submit needs a summary: what you did, in a few sentences.", ok=False, malformed=True)
        self.work.summary = summary.strip()
        if not self.submitted:
            self.submitted = True
            diff = await self.toolbox.pending_diff()
            return Observation(self.desk.prompts.text("checklist", diff=diff, role=str(self.desk.role)))
        self.work.objection = await self.finish() if self.finish is not None else None
        if self.work.objection is None or self.refused >= REFUSALS:
            self._end(Ending.SUBMITTED)
            return Observation("Done.")
        self.refused += 1
        return Observation(f"This cannot be submitted yet. {self.work.objection}", ok=False)

    def _ask(self, arguments: dict[str, Any]) -> Observation:
        question, options = arguments.get("question"), arguments.get("options", [])
        if not isinstance(question, str) or not question.strip() or not isinstance(options, list):
            return Observation("ask_human needs a question, and options as a list of texts.", ok=False, malformed=True)
        self.work.question = question.strip()[:2000]
        self.work.options = tuple(str(option)[:200] for option in options[:8])
        self._end(Ending.ASKED)
        return Observation("The question was put; you go on with the answer when it is there.")

    def _answer_cut(self, calls: tuple[ToolCall, ...]) -> None:
        advice = "Your reply was cut at its output limit and nothing of it was done. Make smaller calls, one at a time."
        self.cut += 1
        if not self.desk.fenced:
            self.messages += [tool_message(call.id, advice) for call in calls]
        self._say(advice)
        if self.cut >= IN_A_ROW:
            self._end(Ending.CUT)

    def _answer_prose(self) -> None:
        self.malformed += 1
        self._say(
            "Nothing was done: there was no tool call in your reply. Call a tool, or submit when the work is done."
        )
        if self.malformed >= IN_A_ROW:
            self._end(Ending.MALFORMED)

    def _cut_out(self, ids: list[str]) -> None:
        if self.warned:
            self._end(Ending.REPEATED)
            return
        self.warned = True
        self.repeats.forget()
        self.messages = _without(self.messages, frozenset(ids[1:]))
        self._say(
            "You have made the same call four times and it gave the same result each time. The repetitions were taken "
            "out. Do something else: read what the result says, look at another file, or change your approach."
        )

    def _say(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text})

    def _end(self, ending: Ending) -> None:
        self.work.ending = ending
        self.ended = True


def _without(messages: list[Message], ids: frozenset[str]) -> list[Message]:
    """Drop the messages that do nothing but make or answer the calls of these ids."""
    kept = []
    for message in messages:
        made = {call["id"] for call in message.get("tool_calls", ())}
        if (made and made <= ids) or (message.get("tool_call_id") in ids and _alone(messages, ids, message)):
            continue
        kept.append(message)
    return kept


def _alone(messages: list[Message], ids: frozenset[str], answer: Message) -> bool:
    calls = (message["tool_calls"] for message in messages if message.get("tool_calls"))
    return any(
        {call["id"] for call in made} <= ids for made in calls if answer["tool_call_id"] in {c["id"] for c in made}
    )
