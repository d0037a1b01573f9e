"""The board starts what may start and merges in one order, whatever order its dicts have."""

from backend.domain import board
from backend.domain.board import Card, Stage, TaskSpec, follow_up, new_card, planned
from backend.domain.plan import PlannedTask
from backend.domain.task import TaskKind


def spec(key: str, number: int, *after: str, priority: int = 0) -> TaskSpec:
    task = PlannedTask(key=key, title=key, acceptance_criteria=("It works.",), depends_on=after, priority=priority)
    return planned(task, number)


def card(status: str, stage: Stage, **more: object) -> Card:
    return {**new_card(), "status": status, "stage": str(stage), **more}  # type: ignore[typeddict-item]  # test data


SPECS = {entry["key"]: entry for entry in (spec("a", 1), spec("b", 2), spec("c", 3, "a"), spec("d", 4, priority=5))}


def test_only_tasks_whose_dependencies_are_done_start() -> None:
    cards = {key: new_card() for key in SPECS}
    assert board.startable(SPECS, cards, 9) == ["d", "a", "b"]
    cards["a"] = card("DONE", Stage.MERGED)
    assert board.startable(SPECS, cards, 2) == ["d", "b"]
    assert board.ready(SPECS, cards) == ["d", "b", "c"]


def test_rounds_of_a_gate_are_counted_over_retries() -> None:
    made = {key: spec(key, 1) for key in ("bug-1-1", "bug-2-1", "bug-2-2", "security-9-1", "a")}
    assert [board.next_round(made, prefix) for prefix in ("bug", "security")] == [3, 10]
    assert board.next_round(SPECS, "bug") == 1


def test_what_was_sent_back_goes_first() -> None:
    cards = {key: new_card() for key in SPECS} | {"b": card("IN_PROGRESS", Stage.SENT_BACK)}
    assert board.startable(SPECS, cards, 2) == ["b", "d"]


def test_the_order_does_not_come_from_the_order_of_keys() -> None:
    cards = {key: new_card() for key in SPECS}
    turned = dict(reversed(SPECS.items()))
    assert board.startable(turned, dict(reversed(cards.items())), 9) == board.startable(SPECS, cards, 9)


def test_approved_changes_merge_in_the_leads_order() -> None:
    cards = {
        "a": card("IN_PROGRESS", Stage.APPROVED, merge_order=50),
        "b": card("IN_PROGRESS", Stage.APPROVED, merge_order=10),
        "c": card("IN_PROGRESS", Stage.WORKING),
        "d": card("IN_PROGRESS", Stage.APPROVED),
    }
    assert board.to_merge(SPECS, cards) == ["b", "d", "a"]


def test_a_task_in_conflict_is_free_when_its_conflict_task_is_done() -> None:
    fix = follow_up("conflict-a-1", 5, title="x", kind=TaskKind.CONFLICT, description="", criteria=["y"], parent="a")
    specs = {**SPECS, fix["key"]: fix}
    cards = {key: new_card() for key in specs} | {"a": card("IN_PROGRESS", Stage.CONFLICTED)}
    assert board.freed(specs, cards) == []
    assert board.startable(specs, cards, 1) == ["conflict-a-1"]
    cards["conflict-a-1"] = card("DONE", Stage.MERGED)
    assert board.freed(specs, cards) == ["a"]


def test_a_board_is_finished_when_every_task_is_done() -> None:
    assert board.is_finished({"a": card("DONE", Stage.MERGED)})
    assert not board.is_finished({"a": card("DONE", Stage.MERGED), "b": card("BLOCKED", Stage.EXHAUSTED)})
