"""Recordings: matched by role, node, task, visit and ordinal, with captures out of the request."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from backend.domain.recording import Recording, request_text


def step(**changed: Any) -> dict[str, Any]:
    return {"role": "pm", "node": "plan", "ordinal": 1, "reply": {"content": "said"}} | changed


def recording(*steps: dict[str, Any]) -> Recording:
    return Recording.model_validate({"recording": 1, "title": "demo", "steps": list(steps)})


def test_a_step_is_found_by_all_five_parts_of_its_place() -> None:
    kept = recording(step(), step(visit=2), step(task="t1"), step(node="dev", role="developer"))
    assert kept.find("pm", "plan", None, 1, 1) == kept.steps[0]
    assert kept.find("pm", "plan", "t1", 1, 1) == kept.steps[2]
    for place in (("lead", "plan", None, 1, 1), ("pm", "plan", "t2", 1, 1), ("pm", "plan", None, 1, 2)):
        assert kept.find(*place) is None


def test_a_missing_step_is_named_in_a_sentence() -> None:
    said = recording().missing("qa", "qa_test", "t1", 2, 5)
    assert "role qa, node qa_test, task t1, visit 2, call 5" in said
    assert "demo" in said


def test_the_last_match_of_a_capture_fills_the_reply_everywhere() -> None:
    kept = recording(
        step(
            captures={"commit": "commit ([0-9a-f]+)"},
            reply={"content": "see {{commit}}", "tool_calls": [{"name": "x", "arguments": {"at": ["{{commit}}"]}}]},
        )
    )
    said = kept.steps[0].reply_to([{"content": "commit aaa"}, {"content": None}, {"content": "commit bbb"}])
    assert said.content == "see bbb"
    assert said.tool_calls[0].arguments == {"at": ["bbb"]}


def test_other_double_braces_stay_as_they_are() -> None:
    text = "${{ github.sha }} {{name}} {{other}}"
    kept = recording(step(captures={"name": "(x)"}, reply={"content": text}), step(ordinal=2, reply={"content": text}))
    assert kept.steps[0].reply_to([{"content": "x"}]).content == "${{ github.sha }} x {{other}}"
    assert kept.steps[1].reply_to([]).content == text


def test_a_capture_that_is_not_there_is_said() -> None:
    kept = recording(step(captures={"id": "id=(.)"}))
    with pytest.raises(LookupError, match="holds nothing that"):
        kept.steps[0].reply_to([{"content": "nothing"}])


def test_captures_are_searched_in_contents_and_in_tool_calls() -> None:
    call = {"function": {"name": "x", "arguments": '{"id": 7}'}}
    assert request_text([{"content": "a"}, {"content": None, "tool_calls": [call]}]) == 'a\n{"id": 7}'


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ([step(), step()], "two steps are recorded for role pm"),
        ([step(captures={"x": "("})], "not a regular expression"),
        ([step(captures={"x": "a"})], "exactly one group"),
        ([step(captures={"Bad Name": "(a)"})], "captures"),
        ([step(role="cook")], "role"),
        ([step(ordinal=0)], "ordinal"),
        ([step(usage={"input": -1})], "usage.input"),
        ([step(extra=1)], "extra"),
    ],
)
def test_a_recording_that_is_not_in_order_is_refused(wrong: list[dict[str, Any]], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        recording(*wrong)
