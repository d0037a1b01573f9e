"""Words that a model says while it says them: shown word by word, and no secret in whatever pieces it comes."""

from __future__ import annotations

import json
import random

import pytest

from backend.domain.secret import MASK, masked
from backend.domain.words import Passage

CANARIES = ("AKIA" + "CANARY4M2PLN5RTU", "9f1c4e7a2b8d6053canary", "xoxb-" + "canary-0123456789ab")
TEXT = (
    "Here is the plan.\n\nconfig = {\n"
    f"    'aws': '{CANARIES[0]}',\n    'api_token':\n    '{CANARIES[1]}',\n"
    f"}}\nurl = https://ada:{CANARIES[2]}@host.example/path and {CANARIES[2]} again, {CANARIES[0]}\n"
) * 3 + "The end: é, \U0001f600."


def shown(pieces: list[str], tool: str | None = None) -> list[str]:
    passage = Passage(tool)
    taken = []
    for piece in pieces:
        passage.add(piece)
        taken.append(passage.take())
    return [*taken, passage.take(whole=True)]


def cut(text: str, seed: int) -> list[str]:
    chance = random.Random(seed)
    pieces = []
    while text:
        size = chance.randint(1, 9)
        pieces.append(text[:size])
        text = text[size:]
    return pieces


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("tool", [None, "write_file"])
def test_what_is_shown_piece_by_piece_is_the_text_without_its_secrets(seed: int, tool: str | None) -> None:
    text = TEXT if tool is None else json.dumps({"path": "a.py", "content": TEXT})
    said = "".join(shown(cut(text, seed), tool))
    assert not any(canary in said for canary in CANARIES)
    assert said.count(MASK) == 15
    if tool is None:
        assert said == masked(TEXT)
    else:
        assert said.endswith('The end: é, \U0001f600."}')


def test_a_word_is_shown_when_it_is_whole_and_not_before() -> None:
    assert shown(["on", "e tw", "o three", " "]) == ["", "one ", "two ", "three ", ""]


def test_half_an_escape_waits_for_its_other_half() -> None:
    pieces = ['{"a": "one\\', "ntwo \\u00", "e9 \\\\", 'n three"}']
    assert "".join(shown(pieces, "t")) == '{"a": "one\ntwo é \\n three"}'


def test_what_no_database_could_keep_is_shown_as_a_sign_for_it() -> None:
    assert "".join(shown(["a\0b \ud83d c"])) == "a\ufffdb \ufffd c"


def test_a_text_without_an_end_keeps_little_of_itself() -> None:
    passage = Passage()
    for _ in range(200):
        passage.add("word " * 10)
        passage.take()
    assert len(passage._text) < 1_000
