"""The history fits its window, and compaction asks no new question."""

import json
from typing import Any

import pytest

from backend.agents.history import assistant, compact, parse, steady, tool_message
from backend.domain.model import Message
from tests.unit.agents.script import check_protocol, said


def history(turns: int, *, seen: int = 4_000, written: int = 10, tool: str = "search") -> list[Message]:
    messages: list[Message] = [{"role": "system", "content": "S"}, {"role": "user", "content": "T"}]
    for at in range(turns):
        call = {"id": f"c{at}", "type": "function"}
        given = json.dumps({"content": "w" * written})
        messages.append(
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{**call, "function": {"name": tool, "arguments": given}}],
            }
        )
        messages.append(tool_message(f"c{at}", "x" * seen))
    return messages


def size(messages: list[Message]) -> int:
    return sum(len(json.dumps(message)) for message in messages)


def hashed(messages: list[Message]) -> list[Any]:
    return [{**message, "content": None} if message["role"] == "tool" else message for message in messages]


def test_a_short_history_stays_as_it_is() -> None:
    assert compact(history(3), window_tokens=128_000) == history(3)


def test_old_observations_go_first_and_the_opening_and_the_end_stay() -> None:
    long = history(40)
    short = compact(long, window_tokens=20_000)
    assert size(short) <= 20_000 * 4 * 0.6
    assert (short[:2], short[-8:]) == (long[:2], long[-8:])
    assert hashed(short) == hashed(long)
    check_protocol(tuple(short))


def test_what_is_pinned_stays() -> None:
    short = compact(history(40), window_tokens=20_000, pinned=["c3"])
    kept = [message for message in short if message.get("tool_call_id") == "c3"]
    assert kept[0]["content"] == "x" * 4_000


def test_long_arguments_go_when_observations_are_not_enough() -> None:
    short = compact(history(40, seen=10, written=4_000), window_tokens=20_000)
    assert size(short) <= 20_000 * 4 * 0.6
    check_protocol(tuple(short))
    for message in short:
        for call in message.get("tool_calls", ()):
            assert parse(call["function"]["arguments"]) is not None


def test_whether_arguments_go_does_not_depend_on_what_tools_showed() -> None:
    one, other = (compact(history(40, seen=seen, written=900), window_tokens=20_000) for seen in (3_990, 4_010))
    assert hashed(one) == hashed(other)


def test_at_most_25_000_tokens_of_files_stay() -> None:
    short = compact(history(60, tool="read_file"), window_tokens=1_000_000)
    shown = [len(message["content"]) for message in short if message["role"] == "tool"]
    assert sum(length for length in shown if length == 4_000) <= 100_000
    assert shown[-1] == 4_000


def test_compacting_twice_is_compacting_once() -> None:
    short = compact(history(40), window_tokens=20_000)
    assert compact(short, window_tokens=20_000) == short


@pytest.mark.parametrize("arguments", ["", "{}", '{"a": 1}'])
def test_arguments_that_are_an_object_are_kept(arguments: str) -> None:
    message = assistant(said(("read_file", arguments)))
    assert message["tool_calls"][0]["function"]["arguments"] == arguments


@pytest.mark.parametrize("arguments", ["{", "[1]", "null", "\u0000", "[" * 100_000])
def test_arguments_that_are_no_object_are_emptied(arguments: str) -> None:
    message = assistant(said(("read_file", arguments)))
    assert message["tool_calls"][0]["function"]["arguments"] == "{}"


def test_an_empty_reply_is_still_a_message() -> None:
    assert assistant(said())["content"]


def test_what_differs_each_time_is_taken_out() -> None:
    one = "1 failed in 0.12s at 0x7f00aa11 in /tmp/pytest-1/x.py"
    other = "1 failed in 3.4s at 0x7f00bb22 in /tmp/pytest-2/x.py"
    assert steady(one) == steady(other)
    assert steady("12 failed") != steady("13 failed")
