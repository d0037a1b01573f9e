"""Token estimates: characters / 4, four a message, tools counted, corrected by what was billed."""

from __future__ import annotations

from backend.domain.estimate import MARGIN, Ratio, input_tokens, message_tokens, reserved_input, text_tokens
from backend.domain.model import ModelRequest
from backend.domain.role import Role

CALL = {"id": "1", "type": "function", "function": {"name": "read", "arguments": '{"path": "a.py"}'}}
TOOL = {"type": "function", "function": {"name": "read", "parameters": {"type": "object"}}}


def test_four_characters_are_a_token_and_other_scripts_count_more() -> None:
    assert text_tokens("") == 0
    assert text_tokens("abcd" * 100) == 100
    assert text_tokens("漢字") == 2


def test_tool_calls_content_parts_and_empty_contents_are_counted() -> None:
    assert message_tokens({"role": "assistant", "content": None}) == 4
    assert message_tokens({"role": "assistant", "content": None, "tool_calls": [CALL]}) == 9
    assert message_tokens({"role": "user", "content": [{"type": "text", "text": "hello"}]}) > 4


def test_tools_count_towards_the_request() -> None:
    bare = ModelRequest(role=Role.PM, messages=({"role": "user", "content": "hi"},))
    tooled = ModelRequest(role=Role.PM, messages=bare.messages, tools=(TOOL,))
    assert input_tokens(tooled) > input_tokens(bare) > 0


def test_the_ratio_follows_the_bills_and_an_absurd_bill_moves_it_only_so_far() -> None:
    ratio = Ratio().after(estimated=100, billed=150)
    assert ratio.value == 1.5
    assert 1.5 < ratio.after(estimated=100, billed=200).value < 2.0
    assert Ratio().after(estimated=1, billed=10**9).value <= 8.0
    assert Ratio().after(estimated=100, billed=0) == Ratio() == Ratio().after(estimated=0, billed=5)


def test_a_reservation_holds_a_margin() -> None:
    assert reserved_input(1000, Ratio()) == 1000 * MARGIN
    assert reserved_input(1000, Ratio(2.0, 1)) == 2000 * MARGIN
