"""The ladder that finds a quoted passage: exact, by indentation, near, and else an answer that helps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.domain.edit import NotReplaced, Replaced, str_replace

FILE = """\
class Cart:
    def total(self) -> int:
        amount = 0
        for item in self.items:
            amount += item.price
        return amount

    def count(self) -> int:
        return len(self.items)
"""


def test_an_exact_passage_is_replaced() -> None:
    done = str_replace(FILE, "amount = 0", "amount = 1")
    assert done == Replaced(FILE.replace("amount = 0", "amount = 1"), "exact", 3)


def test_a_passage_that_occurs_twice_is_refused_with_its_lines() -> None:
    assert str_replace("a\nb\na\n", "a", "c") == NotReplaced(
        "old_str matches in 2 places (lines 1, 3). Quote more lines around the one you mean."
    )


def test_wrong_indentation_is_mended_in_both_passages() -> None:
    done = str_replace(FILE, "for item in self.items:\n    amount += item.price", "for item in self:\n    amount += 1")
    assert isinstance(done, Replaced)
    assert done.how == "indentation"
    assert "        for item in self:\n            amount += 1\n        return amount" in done.text


def test_one_near_match_is_taken() -> None:
    old = "\n".join(FILE.splitlines()[1:5]).replace("items", "itmes")
    done = str_replace(FILE, old, "    def total(self) -> int:\n        return 0")
    assert isinstance(done, Replaced)
    assert (done.how, done.line) == ("near match", 2)
    assert "def total(self) -> int:\n        return 0\n        return amount" in done.text


def test_two_near_matches_are_refused() -> None:
    one = "value = compute_the_total(first, second, third_column_a)\n"
    text = one + "\n" + one.replace("column_a", "column_b")
    refused = str_replace(text, "value = compute_the_total(first, second, third_column_x)", "value = 1")
    assert isinstance(refused, NotReplaced)
    assert "nearly matches in 2 places (lines 1, 3)" in refused.reason


def test_what_is_not_there_is_answered_with_the_nearest_passages() -> None:
    refused = str_replace(FILE, "    def totals(self) -> float:\n        amount = 0.0", "x")
    assert isinstance(refused, NotReplaced)
    assert "    2      def total(self) -> int:\n    3          amount = 0" in refused.reason


@pytest.mark.parametrize(("old", "new"), [("", "x"), ("  \n", "x"), ("class Cart:", "class Cart:"), ("zzz qqq", "x")])
def test_nothing_is_guessed(old: str, new: str) -> None:
    assert isinstance(str_replace(FILE, old, new), NotReplaced)


def test_a_passage_can_be_removed() -> None:
    done = str_replace("a\nb\n  c\n", "c\n", "")
    assert done == Replaced("a\nb\n  ", "exact", 3)
    loose = str_replace("a\n    b\n    c\nd\n", "  b\n  c", "")
    assert loose == Replaced("a\nd\n", "indentation", 2)


def test_a_file_without_a_last_line_end_keeps_it_so() -> None:
    done = str_replace("a\n    b = 1", "  b = 1\n", "  b = 2\n")
    assert isinstance(done, Replaced)
    assert done.text == "a\n    b = 2"


@given(st.text(max_size=300), st.text(min_size=1, max_size=40), st.text(max_size=40))
def test_whatever_is_said_only_the_found_passage_changes(text: str, old: str, new: str) -> None:
    done = str_replace(text, old, new)
    if isinstance(done, Replaced) and done.how == "exact":
        assert text.count(old) == 1
        assert done.text == text.replace(old, new)
    elif isinstance(done, NotReplaced):
        assert done.reason


def test_a_huge_file_is_searched_all_the_same() -> None:
    text = "".join(f"value_{n} = {n}\n" for n in range(30_000))
    assert isinstance(str_replace(text, "value_29999 = 29999", "value = 0"), Replaced)
    refused = str_replace(text, "value_7 = 8\nvalue_8 = 8", "x")
    assert isinstance(refused, NotReplaced)
    assert "value_8 = 8" in refused.reason
