"""Texts without the secrets that they speak of."""

from __future__ import annotations

import pytest

from backend.domain import secret

KEY = "AKIA" + "QX7ZJ4M2PLN5RTUV"


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (f"KEY = {KEY}", KEY),
        ("password = 'correct horse'", "correct horse"),
        ("PASSWORD=swordfish", "swordfish"),
        ('{"token": "swordfish"}', "swordfish"),
        ("login(password='t7Kq9zLm2')", "t7Kq9zLm2"),
    ],
)
def test_the_secret_of_a_line_is_among_its_literals(line: str, value: str) -> None:
    assert value in secret.literals(line)


def test_names_are_not_taken_for_secrets() -> None:
    assert secret.literals("os.environ.get('API_TOKEN', \"password\")") == frozenset()


@pytest.mark.parametrize(
    ("text", "without"),
    [
        (f"It holds {KEY}.", "It holds ***."),
        ("api_key = '9f8a7b6c5d4e3f2a'", "api_key = '***'"),
        ("clone https://ada:pw@host/x", "clone https://***@host/x"),
        ("https://ghp_x@host", "https://***@host"),
        ("Nothing to hide at https://host/a@b.", "Nothing to hide at https://host/a@b."),
        ("", ""),
    ],
)
def test_known_shapes_are_masked(text: str, without: str) -> None:
    assert secret.masked(text) == without


def test_given_values_are_masked_longest_first_and_trifles_are_left() -> None:
    assert secret.masked("horse, horses, ab", ["horse", "horses", "ab"]) == "***, ***, ab"


def test_masking_twice_is_the_same_as_once() -> None:
    once = secret.masked(f"{KEY} and https://a:b@c", ["and "])
    assert secret.masked(once, ["and "]) == once
