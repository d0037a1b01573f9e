"""Two hundred people at once steer the same runs over the api, while workers drive them: no illegal move, no error."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from uuid import UUID

from tests.acceptance.faults import numbers
from tests.acceptance.faults.conftest import Crew
from tests.acceptance.faults.desk import Desk
from tests.acceptance.faults.nursery import Nursery
from tests.patience import PATIENCE

AT_ONCE = 200
TOGETHER = 5
"""So many runs are steered at once."""
THINKING_SECONDS = 1.0
"""Models that take so long keep the runs on their way while people steer."""
VERBS = ("pause", "resume", "stop", "retry", "answer")
_ASKED = "SELECT id FROM questions WHERE run_id = $1 ORDER BY status <> 'OPEN' LIMIT 1"


class Crowd:
    """People who steer, at most so many at once, and what they are answered."""

    def __init__(self, desk: Desk, crew: Crew) -> None:
        self._desk, self._crew, self._gate = desk, crew, asyncio.Semaphore(AT_ONCE)
        self.answers: Counter[tuple[str, int]] = Counter()
        self.longest = 0.0

    async def steer(self, run_id: UUID, verb: str) -> None:
        """One call; an answer goes to the run's question, if it ever asked one."""
        async with self._gate:
            began = time.monotonic()
            status = await (self._answer(run_id) if verb == "answer" else self._order(run_id, verb))
            self.answers[verb, status] += 1
            self.longest = max(self.longest, time.monotonic() - began)

    async def _order(self, run_id: UUID, verb: str) -> int:
        return await self._desk.status("POST", f"/api/runs/{run_id}/{verb}")

    async def _answer(self, run_id: UUID) -> int:
        asked = await self._crew.query(_ASKED, run_id)
        if not asked:
            return await self._order(run_id, "resume")
        return await self._desk.status("POST", f"/api/questions/{asked[0][0]}/answer", json={"answer": "blue"})

    def statuses(self) -> Counter[int]:
        """How many were answered with each status."""
        told = Counter[int]()
        for (_, status), count in self.answers.items():
            told[status] += count
        return told

    async def let_end(self) -> int:
        """Resume and answer until nothing is on its way; returns how many calls that took."""
        calls = 0
        async with asyncio.timeout(PATIENCE):
            while left := await self._crew.query("SELECT id, status FROM project_runs WHERE ended_at IS NULL"):
                held = [(run_id, status) for run_id, status in left if status in {"PAUSED", "WAITING"}]
                for run_id, status in held:
                    await self.steer(run_id, "answer" if status == "WAITING" else "resume")
                calls += len(held)
                await asyncio.sleep(0.2)
        return calls


async def _race(crew: Crew, crowd: Crowd, chance: random.Random) -> list[UUID]:
    """Begin a few runs and let everybody steer them at once; returns them when all have ended."""
    made = [await crew.run("a question" if place % 2 else "go") for place in range(TOGETHER)]
    verbs = [(run_id, chance.choice(VERBS)) for run_id in made for _ in range(AT_ONCE)]
    chance.shuffle(verbs)
    crew.pace = THINKING_SECONDS
    await asyncio.gather(*(crowd.steer(*verb) for verb in verbs))
    crew.pace = Crew.pace
    return made


async def test_two_hundred_people_who_steer_at_once_make_no_illegal_move_and_meet_no_error(
    crew: Crew, nursery: Nursery
) -> None:
    chance, raced, made, later = random.Random(3), Counter[int](), list[UUID](), 0
    for _ in range(2):
        nursery.start(crew.environment)
    async with Desk(crew, nursery) as desk:
        crowd = Crowd(desk, crew)
        while len(made) < numbers.of(50):
            told = crowd.statuses()
            made += await _race(crew, crowd, chance)
            raced += crowd.statuses() - told
            later += await crowd.let_end()
    moves = (await crew.query("SELECT count(*) FROM events WHERE type LIKE 'run.%'"))[0][0]
    counts = {"obeyed": raced[200], "refused": raced[409], "runs": len(made), "steps of runs": moves}
    counts |= {"calls later": later, "longest seconds": round(crowd.longest, 1)}
    numbers.report("control races", raced.total(), AT_ONCE * numbers.of(50), "calls", **counts)
    assert set(crowd.statuses()) <= {200, 409}, crowd.answers
    assert {verb for verb, status in crowd.answers if status == 200} == set(VERBS)
    ends = set(await crew.query("SELECT status FROM project_runs"))
    assert ends <= {("COMPLETED",), ("STOPPED_USER",)}, crew.log()
    await crew.check()
