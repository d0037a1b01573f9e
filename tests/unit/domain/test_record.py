"""A journal becomes a recording: usage, replies, and captures for ids that differ in every run."""

from __future__ import annotations

from typing import Any

from backend.domain.record import Kept, recording_of

COMMIT = "3f9c1e0a7b2d4c5e6f708192a3b4c5d6e7f80912"
OTHER = "91827364a5b6c7d8e9f0a1b2c3d4e5f607182930"


def kept(ordinal: int = 1, *, asked: list[str] | None = None, after: int = 0, **response: Any) -> Kept:
    messages = [{"role": "user", "content": text} for text in asked or ["do it"]]
    said = {
        "content": "ok",
        "tool_calls": [],
        "finish_reason": "stop",
        "usage": {"input_tokens": 5, "output_tokens": 2},
    }
    return Kept(
        "lead", "lead_review", 2, ordinal, "t1", "gpt-4o", {"messages": messages, "after": after}, said | response
    )


def test_a_call_becomes_a_step_with_its_place_and_usage() -> None:
    (step,) = recording_of("demo", "a brief", [kept()]).steps
    assert step.place == ("lead", "lead_review", "t1", 2, 1)
    assert (step.model, step.usage.input, step.usage.output, step.reply.content) == ("gpt-4o", 5, 2, "ok")


def test_arguments_that_are_an_object_are_kept_as_one_and_others_as_text() -> None:
    calls = [{"id": "1", "name": "x", "arguments": '{"a": 1}'}, {"id": "2", "name": "x", "arguments": '{"a": '}]
    (step,) = recording_of("demo", "", [kept(tool_calls=calls, content="", finish_reason="tool_calls")]).steps
    assert [call.arguments for call in step.reply.tool_calls] == [{"a": 1}, '{"a": ']


def test_a_commit_that_the_reply_quotes_is_captured_and_filled_with_the_next_runs_commit() -> None:
    calls = [{"id": "1", "name": "review", "arguments": f'{{"commit": "{COMMIT}", "of": "{COMMIT}"}}'}]
    (step,) = recording_of("demo", "", [kept(asked=[f"Review commit {COMMIT}\nthanks"], tool_calls=calls)]).steps
    said = step.reply_to([{"role": "user", "content": f"Review commit {OTHER}\nthanks"}])
    assert said.tool_calls[0].arguments == {"commit": OTHER, "of": OTHER}


def test_two_ids_of_one_line_are_told_apart() -> None:
    asked = f"diff {COMMIT[:10]}..{OTHER[:10]} of the task"
    (step,) = recording_of("demo", "", [kept(asked=[asked], content=f"{OTHER[:10]} then {COMMIT[:10]}")]).steps
    again = step.reply_to([{"content": "diff aaaaaaaa11..bbbbbbbb22 of the task"}])
    assert again.content == "bbbbbbbb22 then aaaaaaaa11"


def test_ids_are_found_in_what_was_said_earlier_in_the_visit() -> None:
    calls = [kept(1, asked=["system", f"base {COMMIT}"]), kept(2, asked=["more"], after=2, content=f"at {COMMIT}")]
    second = recording_of("demo", "", calls).steps[1]
    assert second.captures
    assert second.reply_to([{"content": f"base {OTHER}"}]).content == f"at {OTHER}"


def test_words_and_numbers_are_no_ids() -> None:
    text = "the facade of 20261121 is added"
    (step,) = recording_of("demo", "", [kept(asked=[text], content=text)]).steps
    assert step.captures == {}
    assert step.reply.content == text


def test_an_id_that_the_request_does_not_hold_is_kept_as_it_is() -> None:
    (step,) = recording_of("demo", "", [kept(content=f"I made up {COMMIT}")]).steps
    assert step.captures == {}
