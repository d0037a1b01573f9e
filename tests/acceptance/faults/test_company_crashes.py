"""Workers of the company's own graph die at every named point: the same repository, the same rows, the same spend."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from backend.adapters.db.engine import transaction
from backend.operations import questions
from tests.acceptance.faults import numbers
from tests.acceptance.faults.nursery import Nursery
from tests.acceptance.faults.test_crashes import POINTS
from tests.acceptance.firm import Firm
from tests.integration.engine.conftest import RecordingBell
from tests.openai_server import position_of
from tests.small_company import SmallCompany, Turn

Hire = Callable[..., Firm]
TIMES = {point: len(armed) for point, armed in POINTS.items()}
"""How often a run can die at each point: its end is written once, everything else happens again."""
BEFORE_THE_ANSWER = ("received", "heard", "claim", "reserve", "response", "hold")
WHILE_THREE_DEVELOP = ("booked", "writes", "written")
LATER = ("transaction", "checkpoint", "committed", "final")
CASES = [pytest.param(dict.fromkeys(POINTS, 1), id="every point")]
if numbers.FULL:
    CASES += [pytest.param(TIMES, id="every point twice")]
    CASES += [pytest.param({point: times}, id=f"{point}, {times}") for point, times in TIMES.items()]
SETTINGS: dict[str, Any] = {"people": {"approve_plan": True}, "parallelism": 3}
_PARTS = {
    "run": "SELECT status, stop_reason, progress, event_seq > 0 FROM project_runs WHERE id = $1",
    "calls": "SELECT node, visit, ordinal, role, task_key, tokens_input, tokens_output, cost_usd FROM model_calls"
    " WHERE run_id = $1 AND status = 'done' ORDER BY 1, 2, 3",
    "tasks": "SELECT key, status, iteration, kind, title FROM tasks WHERE run_id = $1 ORDER BY key",
    "comments": "SELECT node, visit, author_name, comment_type FROM task_comments WHERE run_id = $1"
    " ORDER BY 1, 2, 3, 4",
    "findings": "SELECT source, scanner, rule, severity, path, status FROM findings WHERE run_id = $1"
    " ORDER BY 1, 2, 3, 5",
    "artifacts": "SELECT path, kind, sha256 FROM artifacts WHERE run_id = $1 ORDER BY 1, 2",
    "questions": "SELECT key, status, answer FROM questions WHERE run_id = $1 ORDER BY 1",
    "events": "SELECT type, count(*) FROM events WHERE run_id = $1"
    " AND type NOT IN ('run.resumed', 'run.lease_lost', 'model.failed') GROUP BY 1 ORDER BY 1",
}
_SPEND = (
    "SELECT r.spent_usd = sum(c.cost_usd) FILTER (WHERE c.status IN ('done', 'failed')),"
    " count(*) FILTER (WHERE c.status = 'failed') FROM project_runs r JOIN model_calls c ON c.run_id = r.id"
    " WHERE r.id = $1 GROUP BY r.id"
)
_twins: list[dict[str, Any]] = []
"""What a run comes to that nothing happens to."""


_LETTERS = '''"""Counts letters."""


def count_letters(text: str) -> int:
    """Return the number of letters."""
    return sum(map(str.isalpha, text))
'''
_TESTED = """

def test_two_letters() -> None:
    from letters import count_letters

    assert count_letters("a b") == 2
"""


class ThreeAtOnce(SmallCompany):
    """A company with a third task beside `words` and `lines` that takes longer: more than one commit of its superstep
    comes before the last task is done."""

    def _answers(self, node: str, task: str | None, body: dict[str, Any]) -> tuple[Turn, ...]:
        turns = super()._answers(node, task, body)
        if node == "pm_create_tasks":
            (((name, plan),),) = turns
            third = {"key": "letters", "title": "Count letters", "acceptance_criteria": ["count_letters('ab') is 2"]}
            return (((name, {**plan, "tasks": [*plan["tasks"], third]}),),)
        if node == "dev_work" and task == "letters":
            write = ("write_file", {"path": "letters.py", "content": _LETTERS})
            test = (("run_tests", {}),)
            return ((write,), test, test, *self._develop("words")[2:])
        if node == "qa_test":
            ((name, written), *rest), *others = turns
            content = written["content"].replace("cli#1", "cli#1, letters#1") + _TESTED
            return (((name, {**written, "content": content}), *rest), *others)
        return turns


async def _outcome(firm: Firm, run_id: UUID) -> dict[str, Any]:
    """What is left of a run, without what must differ: ids, instants, commits, calls that were cut."""
    rows = {part: await firm.query(statement, run_id) for part, statement in _PARTS.items()}
    return {"tree": firm.tree(await firm.one("project_id", run_id)), **rows}


async def _approve(firm: Firm, run_id: UUID) -> None:
    await firm.becomes(run_id, "WAITING")
    asked = await firm.query("SELECT id FROM questions WHERE run_id = $1 AND status = 'OPEN'", run_id)
    async with transaction(firm.sessions, RecordingBell()) as session:
        await questions.answer(session, asked[0][0], "approve", by="ada")


def _armed(points: tuple[str, ...], times: dict[str, int]) -> list[str]:
    return [point for point in points for _ in range(times.get(point, 0))]


async def _die(firm: Firm, nursery: Nursery, point: str) -> None:
    pid = nursery.start(firm.environment | {"COMPANY_ENGINE__CRASH_AT": point})
    try:
        await nursery.gone(pid)
    except TimeoutError:
        pytest.fail(f"no worker came to the point {point}")
    await firm.let_leases_end()


async def _twin_of(firm: Firm) -> dict[str, Any]:
    if not _twins:
        worker, run_id = firm.start(), await firm.begin(**SETTINGS)
        await _approve(firm, run_id)
        await firm.ended(run_id)
        assert await firm.one("status", run_id) == "COMPLETED", await firm.explain(run_id)
        worker.kill()
        _twins.append(await _outcome(firm, run_id))
    return _twins[0]


def test_every_point_that_the_code_names_is_died_at_in_the_company_too() -> None:
    assert set(BEFORE_THE_ANSWER + WHILE_THREE_DEVELOP + LATER) == set(POINTS)


@pytest.mark.parametrize("times", CASES)
async def test_a_company_whose_workers_die_at_named_points_delivers_and_pays_the_same(
    hire: Hire, nursery: Nursery, times: dict[str, int]
) -> None:
    firm = hire(ThreeAtOnce())
    expected = await _twin_of(firm)
    before = len(firm.server.requests)
    run_id, deaths = await firm.begin(**SETTINGS), 0
    for point in _armed(BEFORE_THE_ANSWER, times):
        await _die(firm, nursery, point)
        deaths += 1
    worker = firm.start()
    await _approve(firm, run_id)
    worker.kill()
    await firm.let_leases_end()
    for point in _armed(WHILE_THREE_DEVELOP + LATER, times):
        await _die(firm, nursery, point)
        deaths += 1
    firm.start()
    await firm.ended(run_id)
    found = await _outcome(firm, run_id)
    for part, rows in expected.items():
        assert found[part] == rows, part
    await firm.check()
    ((booked, cut),) = await firm.query(_SPEND, run_id)
    assert booked
    asked = Counter(position_of(request.headers) for request in firm.server.requests[before:])
    again = sum(asked.values()) - len(asked)
    assert again <= cut <= deaths * 3
    where = "every point" if len(times) > 1 else next(iter(times))
    numbers.report(f"kill at: {where}", deaths, sum(times.values()), "kills", graph="software_company", calls_cut=cut)
