"""Structured replies fit their form, or are answered once with the error."""

from typing import Any

import pytest

from backend.agents.reply import Form, structured
from backend.domain.config import RoleConfig
from backend.domain.model import Opening
from backend.domain.plan import Plan, faults
from backend.domain.ports import StepFailed
from backend.domain.role import Role
from tests.unit.agents.script import Bench, Script, said

OPENING = Opening(({"role": "system", "content": "Plan."}, {"role": "user", "content": "Brief."}), "hash")
FORM = Form("plan", "the tasks.", Plan, faults)
GOOD = {"approach": "As it comes.", "tasks": [{"key": "a", "title": "A", "acceptance_criteria": ["It works."]}]}
CYCLE = {**GOOD, "tasks": [{**GOOD["tasks"][0], "depends_on": ["a"]}]}  # type: ignore[dict-item]  # plain JSON
HUGE = {**GOOD, "tasks": [{**GOOD["tasks"][0], "key": f"t{at}"} for at in range(500)]}  # type: ignore[dict-item]  # as above


async def ask(script: Script, **more: Any) -> Plan:
    looks = more.pop("looks", 0)
    return await structured(script.desk(more.pop("role", Role.PM), **more), OPENING, FORM, looks=looks)


async def test_a_reply_that_fits_is_returned() -> None:
    script = Script(said(("plan", GOOD)))
    assert (await ask(script)).tasks[0].key == "a"
    assert script.requests[0].tool_choice == {"type": "function", "function": {"name": "plan"}}
    assert [tool["function"]["name"] for tool in script.requests[0].tools] == ["plan"]


@pytest.mark.parametrize(
    "bad",
    [
        said(content="Here is my plan: do it."),
        said(("plan", "{cut")),
        said(("plan", '{"approach": "x", "tasks": ['), finish="length"),
        said(("plan", "")),
        said(("other", GOOD)),
        said(("plan", {"tasks": []})),
        said(("plan", {**GOOD, "tasks": []})),
        said(("plan", CYCLE)),
        said(("plan", HUGE)),
        said(),
    ],
)
async def test_a_reply_that_does_not_fit_is_answered_once_with_the_error(bad: Any) -> None:
    script = Script(bad, said(("plan", GOOD)))
    assert (await ask(script)).approach == "As it comes."
    assert "does not fit" in str(script.requests[1].messages[-1]["content"])
    with pytest.raises(StepFailed) as failed:
        await ask(Script(bad))
    assert failed.value.replies_at_fault
    assert failed.value.code == "reply_unusable"


async def test_the_error_is_part_of_the_next_question() -> None:
    script = Script(said(("plan", CYCLE)), said(("plan", GOOD)))
    await ask(script)
    answers = [message for message in script.requests[1].messages if message["role"] == "user"]
    assert "a -> a" in str(answers[-1]["content"])


async def test_a_cut_reply_is_told_to_be_shorter() -> None:
    script = Script(said(("plan", '{"a'), finish="length"), said(("plan", GOOD)))
    await ask(script)
    assert "cut at its output limit" in str(script.requests[1].messages[-1]["content"])


@pytest.mark.parametrize("fence", ["{}", "```json\n{}\n```", "Here:\n```\n{}\n```\nThat is all."])
async def test_an_object_in_the_text_is_taken_too(fence: str) -> None:
    import json

    text = fence.replace("{}", json.dumps(GOOD))
    assert (await ask(Script(said(content=text)))).tasks[0].key == "a"


async def test_a_role_may_look_around_before_it_replies() -> None:
    bench = Bench(lambda name, given: "1: text")
    look, reply = said(("read_file", {"path": "a"}), ("search", {"regex": "x"})), said(("plan", GOOD))
    script = Script(look, reply)
    await ask(script, role=Role.LEAD, toolbox=bench, looks=2)
    assert [name for name, _ in bench.calls] == ["read_file", "search"]
    assert script.requests[0].tool_choice == "auto"


async def test_looking_around_has_an_end() -> None:
    look = said(("read_file", {"path": "a"}))
    script = Script(look, look, said(("plan", GOOD)))
    await ask(script, role=Role.LEAD, toolbox=Bench(), looks=2)
    assert script.requests[2].tool_choice == {"type": "function", "function": {"name": "plan"}}


async def test_looking_with_a_tool_that_is_not_there_is_answered() -> None:
    bench = Bench()
    script = Script(said(("run", {"command": "id"})), said(("plan", GOOD)))
    await ask(script, role=Role.LEAD, toolbox=bench, looks=2)
    assert bench.calls == []
    assert "no tool run" in str(script.requests[1].messages[-1]["content"])


async def test_without_tool_calls_the_schema_stands_in_the_question() -> None:
    import json

    script = Script(said(content=json.dumps(GOOD)))
    await ask(script, config=RoleConfig(edit_format="fenced"))
    assert script.requests[0].tools == ()
    assert "JSON Schema" in str(script.requests[0].messages[-1]["content"])
