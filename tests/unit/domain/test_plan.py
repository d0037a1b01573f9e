"""A plan that cannot be worked on is refused with a sentence for each fault."""

import pytest
from pydantic import ValidationError

from backend.domain.plan import MAX_TASKS, Plan, criteria_named, faults, in_order


def plan(*tasks: dict[str, object]) -> Plan:
    whole = [{"title": "T", "acceptance_criteria": ["It works."], **task} for task in tasks]
    return Plan.model_validate({"approach": "As it comes.", "tasks": whole})


def test_a_sound_plan_has_no_faults() -> None:
    assert faults(plan({"key": "a"}, {"key": "b", "depends_on": ["a"], "parent": "a"})) == []


@pytest.mark.parametrize(
    ("tasks", "word"),
    [
        ([{"key": "a"}, {"key": "a"}], "2 times"),
        ([{"key": "a", "depends_on": ["b"]}], "not in the plan"),
        ([{"key": "a", "parent": "b"}], "not in the plan"),
        ([{"key": "a", "depends_on": ["a"]}], "circle"),
        ([{"key": "a", "depends_on": ["b"]}, {"key": "b", "depends_on": ["a"]}], "a -> b -> a"),
        ([{"key": "a", "parent": "b"}, {"key": "b", "parent": "a"}], "parents run in a circle"),
        ([{"key": "bug-1"}], "choose another"),
        ([{"key": "Security-x"}], "choose another"),
    ],
)
def test_a_plan_that_cannot_be_worked_on_is_refused(tasks: list[dict[str, object]], word: str) -> None:
    assert any(word in fault for fault in faults(plan(*tasks)))


@pytest.mark.parametrize("count", [0, MAX_TASKS + 1, 500])
def test_no_tasks_and_too_many_tasks_are_refused(count: int) -> None:
    with pytest.raises(ValidationError):
        plan(*({"key": f"t{at}"} for at in range(count)))


@pytest.mark.parametrize("key", ["", "../x", "a b", "1a", "a" * 41, "a.lock", "a\n"])
def test_a_key_that_cannot_name_a_branch_is_refused(key: str) -> None:
    with pytest.raises(ValidationError):
        plan({"key": key})


def test_tasks_come_after_what_they_need_and_otherwise_as_planned() -> None:
    found = in_order(plan({"key": "c", "depends_on": ["b"]}, {"key": "a"}, {"key": "b"}, {"key": "d", "parent": "c"}))
    assert [task.key for task in found] == ["a", "b", "c", "d"]


def test_a_large_chain_is_ordered() -> None:
    keys = [f"t{at}" for at in range(MAX_TASKS)]
    chain = plan(*({"key": key, "depends_on": keys[at + 1 : at + 2]} for at, key in enumerate(keys)))
    assert faults(chain) == []
    assert [task.key for task in in_order(chain)] == keys[::-1]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('"""It adds. criterion: money#1"""', {"money#1"}),
        ("# Criteria: a#1, b-c#12\n", {"a#1", "b-c#12"}),
        ("criterion: nothing", set()),
        ("the criterion money#1 is met", set()),
    ],
)
def test_tests_name_the_criteria_they_prove(text: str, named: set[str]) -> None:
    assert criteria_named(text) == named
