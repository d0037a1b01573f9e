"""Ids that must be the same again: what is computed by hand is what the standard says."""

from __future__ import annotations

from uuid import UUID, uuid4, uuid5

from backend.domain.ids import named, task_id, task_name


def test_a_name_has_the_id_that_the_standard_gives_it() -> None:
    for number in range(500):
        space, name = uuid4(), f"task/T{number}/Größe/\U0001f600"
        assert named(space, name) == str(uuid5(space, name))


def test_a_task_has_one_id_as_text_and_as_a_uuid() -> None:
    run = uuid4()
    assert task_id(run, "T1") == UUID(task_name(run, "T1")) == uuid5(run, "task/T1")
