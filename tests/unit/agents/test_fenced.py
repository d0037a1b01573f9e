"""Actions as text are read, whatever stands around them."""

import json

import pytest

from backend.agents.fenced import parse

BLOCK = "<<<<<<< SEARCH\nold\n=======\nnew\n>>>>>>> REPLACE"


@pytest.mark.parametrize(
    "text",
    [
        f"a.py\n{BLOCK}",
        f"Some words.\n\na.py\n```python\n{BLOCK}\n```\nMore words.",
        f"**a.py**\n{BLOCK}",
        f"a.py\r\n{BLOCK}".replace("\n", "\r\n"),
    ],
)
def test_an_edit_is_found(text: str) -> None:
    (call,) = parse(text)
    assert (call.name, json.loads(call.arguments)) == (
        "str_replace",
        {"path": "a.py", "old_str": "old", "new_str": "new"},
    )


def test_an_empty_search_writes_the_file() -> None:
    (call,) = parse("a.py\n<<<<<<< SEARCH\n=======\nx = 1\ny = 2\n>>>>>>> REPLACE")
    assert (call.name, json.loads(call.arguments)) == ("write_file", {"path": "a.py", "content": "x = 1\ny = 2\n"})


def test_an_empty_replace_takes_the_lines_out() -> None:
    (call,) = parse("a.py\n<<<<<<< SEARCH\nx = 1\n=======\n>>>>>>> REPLACE")
    assert json.loads(call.arguments)["new_str"] == ""


def test_actions_keep_their_order() -> None:
    tool = '```tool\n{"name": "run_tests", "arguments": {}}\n```'
    assert [call.name for call in parse(f"{tool}\na.py\n{BLOCK}\n{tool}")] == ["run_tests", "str_replace", "run_tests"]


def test_a_tool_fence_inside_an_edit_is_text() -> None:
    text = 'a.md\n<<<<<<< SEARCH\nold\n=======\n```tool\n{"name": "run", "arguments": {}}\n```\n>>>>>>> REPLACE'
    assert [call.name for call in parse(text)] == ["str_replace"]


@pytest.mark.parametrize(
    "text", ["", "words", "```tool\n{broken\n```", "a.py\n<<<<<<< SEARCH\nold", "```tool\n[]\n```"]
)
def test_what_is_no_action_is_none_or_a_malformed_one(text: str) -> None:
    assert all(call.name == "tool" for call in parse(text))


def test_a_huge_text_without_actions_is_read() -> None:
    assert parse("<<<<<<< SEARCH\n" * 2_000) == ()
