"""A run goes on in the words that it began with, whatever is installed by then, and is refused where they are lost."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID

import pytest

from backend.adapters.db import forking
from backend.domain.role import Role
from backend.engine.loader import Graphs
from backend.engine.prompts import Library
from backend.operations import forks, questions, runs
from tests.integration.engine.conftest import Company, reply
from tests.integration.engine.interview import INTERVIEW, prompts

FIRST, SECOND = prompts("the first"), prompts("the second")
PLACE = forks.Place(Graphs([INTERVIEW]).find, lambda config, brief: [], lambda *at: asyncio.sleep(0, False))
_CALLS = (
    "SELECT node, prompt_hash, request -> 'messages' -> 0 ->> 'content' AS said FROM model_calls"
    " WHERE run_id = $1 AND ordinal = 1 ORDER BY created_at"
)


async def interview(company: Company, brief: str = "Ask a question.", **changes: Any) -> UUID:
    return await company.run(brief, graph="interview", **changes)


async def answer(company: Company, run_id: UUID) -> None:
    question = await company.pool.fetchval("SELECT id FROM questions WHERE run_id = $1 AND status = 'OPEN'", run_id)
    await company.operate(questions.answer, question, "blue", by="ada")


async def pins(company: Company, run_id: UUID) -> Any:
    return json.loads((await company.row(run_id))["prompts"] or "null")


async def said(company: Company, run_id: UUID) -> dict[str, str]:
    """The system text that each visit began with, by its node; its calls carry the hash of its prompt."""
    rows = await company.pool.fetch(_CALLS, run_id)
    known = {made.prompt_hash(name): (made, name) for made in (FIRST, SECOND) for name in ("lead", "qa")}
    for row in rows:
        made, name = known[row["prompt_hash"]]
        assert row["said"].startswith(made.texts["rules"].strip())
        assert name == {"begin": "lead", "follow": "qa"}[row["node"]]
    return {row["node"]: row["said"] for row in rows}


async def ended(company: Company, run_id: UUID) -> tuple[str, str | None, str | None]:
    row = await company.row(run_id)
    return row["status"], row["stop_reason"], row["error"]


async def test_a_run_goes_on_in_the_words_that_it_began_with_and_a_new_one_takes_the_new_words(
    company: Company,
) -> None:
    first, second = company.worker("first", FIRST), company.worker("second", SECOND)
    run_id = await interview(company)
    await first.execute(run_id)
    await answer(company, run_id)
    await second.execute(run_id)
    assert (await company.row(run_id))["status"] == "COMPLETED"
    assert await said(company, run_id) == {
        "begin": "Rules of the first.\nBegin, says the first.",
        "follow": "Rules of the first.\nGo on, says the first.",
    }
    assert await pins(company, run_id) == FIRST.hashes
    newer = await interview(company)
    await second.execute(newer)
    await answer(company, newer)
    await first.execute(newer)
    assert await said(company, newer) == {
        "begin": "Rules of the second.\nBegin, says the second.",
        "follow": "Rules of the second.\nGo on, says the second.",
    }
    assert len(company.transport.calls) == 4
    for each in (run_id, newer):
        await company.check(each)


async def test_a_node_that_runs_again_under_other_prompts_asks_nothing_again(company: Company) -> None:
    run_id = await interview(company, "Begin twice.")
    company.transport.script = lambda position, count: _held_at(company, position.ordinal, count)
    first = company.worker("first", FIRST)
    working = asyncio.create_task(first.execute(run_id))
    await company.until(lambda: len(company.transport.calls) == 2)
    await company.operate(runs.pause, run_id, by="ada", at_once=True)
    await company.until(lambda: first.leases[run_id].reason == "pause_now")
    company.transport.gate.set()
    await working
    assert await ended(company, run_id) == ("PAUSED", "paused_by_person", None)
    await company.operate(runs.resume, run_id, by="ada")
    await company.worker("second", SECOND).execute(run_id)
    assert (await company.row(run_id))["status"] == "COMPLETED"
    asked = [(position.node, position.ordinal) for position in company.transport.calls]
    assert asked == [("begin", 1), ("begin", 2), ("follow", 1)]
    assert (await said(company, run_id))["follow"] == "Rules of the first.\nGo on, says the first."
    await company.check(run_id)


def _held_at(company: Company, ordinal: int, count: int) -> Any:
    if (ordinal, count) == (2, 1):
        company.transport.gate.clear()
    return reply("said")


async def test_workers_of_two_releases_that_claim_at_once_pin_a_run_once(company: Company) -> None:
    made = [await interview(company, "Go.") for _ in range(20)]
    workers = [company.worker(f"{at}", (FIRST, SECOND)[at % 2]) for at in range(4)]
    await asyncio.gather(*(worker.execute(run_id) for run_id in made for worker in workers))
    for run_id in made:
        assert (await company.row(run_id))["status"] == "COMPLETED"
        by = FIRST if await pins(company, run_id) == FIRST.hashes else SECOND
        assert await pins(company, run_id) == by.hashes
        assert {text.split("\n")[0] for text in (await said(company, run_id)).values()} == {by.texts["rules"].strip()}
    kept = {(row["sha256"], row["text"]) for row in await company.pool.fetch("SELECT sha256, text FROM prompts")}
    both = [(made.hashes[name], made.texts[name]) for made in (FIRST, SECOND) for name in made.texts]
    assert kept <= set(both)
    assert len(company.transport.calls) == 2 * len(made)


class Counted:
    """The pool, counting what is sent."""

    def __init__(self, pool: Any) -> None:
        self.pool, self.sent = pool, 0

    async def fetchrow(self, *args: Any) -> Any:
        self.sent += 1
        return await self.pool.fetchrow(*args)


async def test_texts_are_kept_by_the_first_claim_in_a_database_and_no_other_claim_sends_more(company: Company) -> None:
    sent = []
    for own in (FIRST, FIRST, SECOND, FIRST):
        pool = Counted(company.pool)
        library = Library(pool, own)  # a process of its own each time
        claimed = await company.claim(await interview(company), library, pool)
        assert claimed is not None
        assert await library.open(claimed.pins) is own
        sent.append(pool.sent)
    assert sent == [2, 1, 2, 1]


class Dying(Counted):
    """A pool that takes its worker down when it is to send the second statement."""

    async def fetchrow(self, *args: Any) -> Any:
        if self.sent:
            raise RuntimeError("The worker is dead.")
        return await super().fetchrow(*args)


async def test_a_run_whose_worker_died_before_it_pinned_it_is_pinned_by_the_next(company: Company) -> None:
    run_id = await interview(company, "Go.")
    pool = Dying(company.pool)
    with pytest.raises(RuntimeError, match="dead"):
        await company.claim(run_id, Library(pool, FIRST), pool)
    assert (await ended(company, run_id), await pins(company, run_id)) == (("RUNNING", None, None), None)
    await company.let_lease_end(run_id)
    await company.worker("second", SECOND).execute(run_id)
    assert (await company.row(run_id))["status"] == "COMPLETED"
    assert await pins(company, run_id) == SECOND.hashes


async def test_a_claim_of_a_pinned_run_sends_as_much_as_one_of_a_run_without_prompts(company: Company) -> None:
    run_id = await interview(company)
    await company.worker("first", FIRST).execute(run_id)
    await answer(company, run_id)
    pool = Counted(company.pool)
    library = Library(pool, FIRST)
    claimed = await company.claim(run_id, library, pool)
    assert claimed is not None
    await library.open(claimed.pins)
    assert pool.sent == 2, "the claim, and what its past says"
    other = Library(pool, SECOND)
    for _ in range(3):
        assert (await other.open(claimed.pins)).texts == FIRST.texts
    assert pool.sent == 3, "another release's texts are read once"


async def _without_guards(company: Company, statement: str) -> None:
    for name in ("DROP CONSTRAINT IF EXISTS ck_prompts_content", "DISABLE TRIGGER USER"):
        await company.pool.execute(f"ALTER TABLE prompts {name}")
    await company.pool.execute(statement)
    await company.pool.execute("ALTER TABLE prompts ENABLE TRIGGER USER")


async def test_a_text_that_is_not_kept_or_not_what_it_was_is_a_clear_refusal(company: Company) -> None:
    lost, edited = [await interview(company) for _ in range(2)]
    for run_id in (lost, edited):
        await company.worker("first", FIRST).execute(run_id)
        await answer(company, run_id)
    second, kept = company.worker("second", SECOND), FIRST.hashes["qa"]
    await _without_guards(company, f"UPDATE prompts SET text = 'Say anything.' WHERE sha256 = '{kept}'")
    await second.execute(edited)
    status, reason, error = await ended(company, edited)
    assert (status, reason) == ("FAILED", "prompt_gone")
    assert error is not None and f"prompt qa with the hash {kept}, but another text is kept" in error
    await _without_guards(company, f"DELETE FROM prompts WHERE sha256 = '{kept}'")
    await second.execute(lost)
    status, reason, error = await ended(company, lost)
    assert (status, reason) == ("FAILED", "prompt_gone")
    assert error is not None and f"prompt qa with the hash {kept}, but none is kept" in error
    assert len(company.transport.calls) == 2

    # Whoever has the text puts it back when it next takes a new run up; until then it needs no row for its own.
    for run_id in (lost, edited):
        await company.operate(runs.retry, run_id, by="ada")
    await company.worker("first", FIRST).execute(lost)
    await company.worker("first", FIRST).execute(await interview(company, "Go."))
    await second.execute(edited)
    for run_id in (lost, edited):
        assert (await ended(company, run_id))[0] == "COMPLETED"
        assert (await said(company, run_id))["follow"] == "Rules of the first.\nGo on, says the first."


async def test_an_older_prompt_that_needs_what_this_release_does_not_give_fails_the_run_by_name(
    company: Company,
) -> None:
    run_id = await interview(company)
    await company.worker("older", prompts("the older", qa="{{ brief }} {{ tempo }}")).execute(run_id)
    await answer(company, run_id)
    await company.worker("second", SECOND).execute(run_id)
    status, reason, error = await ended(company, run_id)
    assert (status, reason) == ("FAILED", "prompt_unusable")
    assert error is not None and "prompt qa" in error and "'tempo' is undefined" in error


async def test_a_retry_keeps_the_words_of_its_run(company: Company) -> None:
    run_id = await interview(company)
    await company.worker("first", FIRST).execute(run_id)
    await company.operate(runs.stop, run_id, by="ada")
    await company.operate(runs.retry, run_id, by="ada")
    second = company.worker("second", SECOND)
    await second.execute(run_id)
    await answer(company, run_id)
    await second.execute(run_id)
    assert (await company.row(run_id))["status"] == "COMPLETED"
    assert (await said(company, run_id))["follow"] == "Rules of the first.\nGo on, says the first."


async def _fork(company: Company, run_id: UUID, **patch: Any) -> UUID:
    async with company.sessions() as session:
        *_, at = await forking.ids_of(session, run_id)
    made = await company.operate(forks.fork, run_id, checkpoint_id=at, patch=patch, place=PLACE, by="ada")
    found: UUID = made.id
    return found


async def test_a_fork_speaks_as_its_run_did_unless_it_asks_for_other_prompts(company: Company) -> None:
    second = company.worker("second", SECOND)
    run_id = await interview(company, "Go.")
    await company.worker("first", FIRST).execute(run_id)
    for patch, by in (
        ({}, FIRST),
        ({"roles": {"lead": {"prompt_version": None}, "qa": None}}, FIRST),
        ({"roles": {"lead": {"prompt_version": "latest"}}}, SECOND),
        ({"roles": {"lead": {"prompt_version": SECOND.version(Role.LEAD)[:8]}}}, SECOND),
    ):
        made = await _fork(company, run_id, **patch)
        assert await pins(company, made) == (FIRST.hashes if by is FIRST else None)
        await second.execute(made)
        assert (await company.row(made))["status"] == "COMPLETED"
        assert await pins(company, made) == by.hashes
        assert await said(company, made) == {"follow": by.opening("qa", brief="", said="").messages[0]["content"]}


async def test_settings_that_ask_for_other_prompts_are_refused_before_anything_is_asked(company: Company) -> None:
    wanted = {"roles": {"qa": {"prompt_version": FIRST.version(Role.QA)[:12]}}}
    run_id = await interview(company, **wanted)
    second = company.worker("second", SECOND)
    await second.execute(run_id)
    status, reason, error = await ended(company, run_id)
    assert (status, reason) == ("FAILED", "prompt_gone")
    assert error is not None and f"version {FIRST.version(Role.QA)[:12]} of the prompts of qa" in error
    assert await pins(company, run_id) is None
    assert company.transport.calls == []

    await company.operate(runs.retry, run_id, by="ada")
    await company.worker("first", FIRST).execute(run_id)
    await answer(company, run_id)
    await second.execute(run_id)
    assert (await company.row(run_id))["status"] == "COMPLETED"
    assert await pins(company, run_id) == FIRST.hashes
    await company.check(run_id)


async def test_a_run_of_the_release_before_is_pinned_when_it_is_next_taken_up(company: Company) -> None:
    run_id = await interview(company)
    await company.worker("first", FIRST).execute(run_id)
    async with company.pool.acquire() as connection, connection.transaction():
        await connection.execute("SET LOCAL session_replication_role = replica")
        await connection.execute("UPDATE project_runs SET prompts = NULL WHERE id = $1", run_id)
    await answer(company, run_id)
    await company.worker("second", SECOND).execute(run_id)
    assert (await company.row(run_id))["status"] == "COMPLETED"
    assert await pins(company, run_id) == SECOND.hashes
    assert (await said(company, run_id))["follow"] == "Rules of the second.\nGo on, says the second."


async def test_an_auditor_reads_which_text_a_call_was_made_with(company: Company) -> None:
    run_id = await interview(company)
    for own in (FIRST, SECOND):
        await company.worker("w", own).execute(run_id)
        if own is FIRST:
            await answer(company, run_id)
    found = await company.pool.fetch(
        "SELECT c.node, p.prompt, p.text FROM model_calls c JOIN v_run_prompts p USING (run_id, prompt_hash)"
        " WHERE c.run_id = $1 ORDER BY 1",
        run_id,
    )
    assert [tuple(row) for row in found] == [
        ("begin", "lead", FIRST.texts["lead"]),
        ("follow", "qa", FIRST.texts["qa"]),
    ]
