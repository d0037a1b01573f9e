"""Logs: one JSON object a line, with the ids of what is being worked on."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from backend import logs


@pytest.fixture
def lines() -> Iterator[Any]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    stream = io.StringIO()
    logs.setup("INFO", stream=stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_line_has_no_escapes_for_a_terminal_and_celery_does_not_call_a_failed_run_a_success(lines: Any) -> None:
    logging.getLogger("uvicorn.error").info("up", extra={"color_message": "\x1b[1mup\x1b[0m"})
    logging.getLogger("celery.app.trace").info("Task run.execute succeeded")
    assert [sorted(line) for line in lines()] == [["level", "logger", "message", "time"]]


def test_a_line_carries_the_ids_that_hold_where_it_is_logged(lines: Any) -> None:
    with logs.bind(run_id="r", correlation_id="c"):
        with logs.bind(node="dev_work", task="T-1", run_id=None):
            logging.getLogger("a").info("inside", extra={"seconds": 1.5})
        logging.getLogger("a").info("outside")
    logging.getLogger("a").info("after")
    inside, outside, after = lines()
    assert {**inside, "time": ""} == {
        "time": "", "level": "INFO", "logger": "a", "message": "inside", "seconds": 1.5,
        "run_id": "r", "correlation_id": "c", "node": "dev_work", "task": "T-1",
    }  # fmt: skip
    assert ("node" in outside, outside["run_id"], "run_id" in after) == (False, "r", False)
    assert inside["time"].endswith("Z")


async def test_coroutines_at_once_keep_their_own_ids(lines: Any) -> None:
    async def work(name: str) -> None:
        with logs.bind(run_id=name):
            await asyncio.sleep(0)
            logging.getLogger("a").info(name)

    await asyncio.gather(*(work(str(number)) for number in range(20)))
    assert all(line["run_id"] == line["message"] for line in lines())
    assert len(lines()) == 20


def test_an_error_is_one_line_with_its_trace(lines: Any) -> None:
    try:
        raise ValueError("line\nbreak")
    except ValueError:
        logging.getLogger("a").exception("It failed.")
    (line,) = lines()
    assert (line["message"], "ValueError" in line["exc_info"]) == ("It failed.", True)
