"""The board's node: merges what the lead approved, takes in answers, and sends developers to the next tasks.

It runs while nobody works: all developers and reviews of a round are done before it, so its order is the same again
after a crash.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

from langgraph.runtime import Runtime
from langgraph.types import Command, Send

from backend.domain import board as boards
from backend.domain import effect as effects
from backend.domain import gates
from backend.domain.board import Card, Stage, TaskSpec, follow_up, new_card
from backend.domain.comment import CommentType
from backend.domain.effect import Effect
from backend.domain.finding import FindingSource
from backend.domain.ports import RunContext, StepFailed
from backend.domain.role import Role
from backend.domain.task import TaskKind, TaskStatus
from graphs.software_company import trail
from graphs.software_company.state import CompanyState, Job

TO = ("dev_work", "qa_test", "final_decision")
"""Where `dispatch` may go."""


async def dispatch(state: CompanyState, runtime: Runtime[RunContext]) -> Command[Any]:
    """Merge, take in answers, start tasks; when all are done go on to QA, when one is exhausted to the end."""
    turn = _Turn(state, runtime.context)
    trail.enter(runtime.context, "dispatch", turn.visits["dispatch"])
    turn.take_up()
    for key in boards.to_merge(turn.specs, turn.board):
        await turn.merge(key)
    turn.release()
    sends = [] if boards.in_stage(turn.board, Stage.EXHAUSTED) else turn.start()
    return Command(update=turn.update(), goto=cast(Any, sends or turn.onward()))


class _Turn:
    """One visit of `dispatch`: the board as it becomes, and what is put on record about it."""

    def __init__(self, state: CompanyState, context: RunContext) -> None:
        self.state, self.context = state, context
        self.specs: dict[str, TaskSpec] = dict(state["specs"])
        self.board: dict[str, Card] = copy.deepcopy(state["board"])
        self.head = state["head"]
        self.visits = dict(state.get("visits", {}))
        self.visits["dispatch"] = self.visits.get("dispatch", 0) + 1
        self.effects: list[Effect] = []
        self.gates: dict[str, dict[str, str]] = {}

    def take_up(self) -> None:
        """Free the tasks whose question is closed, and those that a retry of the run gives new rounds."""
        for key in boards.in_stage(self.board, Stage.ASKED):
            answer = self.context.answers.get(self.board[key].get("question", ""))
            said = f"{answer.by} answered: {answer.text}" if answer else "Nobody answered: decide yourself and say so."
            self._free(key, said)
        for key in boards.in_stage(self.board, Stage.AGAIN):
            self._free(key, "A person asked for another try.")

    async def merge(self, key: str) -> None:
        """Merge an approved change onto the head; a conflict becomes a task."""
        spec, card = self.specs[key], self.board[key]
        merged = await self.context.workspace.merge(
            self.head,
            card["commit"],
            author=Role.LEAD,
            message=f"Merge {key}: {spec['title']}",
            trailers=trail.trailers(self.context, Role.LEAD, task=key),
        )
        if merged.commit is None:
            self._conflict(key, merged.conflicts)
            return
        self.head = merged.commit
        self._move(key, TaskStatus.DONE, Stage.MERGED, commit=merged.commit)
        self.effects.append(trail.commit_made(merged.commit, role=Role.LEAD, task=key, merge=True))
        self.effects.append(
            effects.add_comment(
                Role.LEAD,
                CommentType.MERGE,
                f"Merged as `{merged.commit[:12]}`.",
                task=key,
                metrics={"rounds": card.get("rounds", 0)},
            )
        )

    def release(self) -> None:
        """Finish the tasks whose conflict is resolved, and mark those as ready that wait for nothing any more."""
        for key in boards.freed(self.specs, self.board):
            self._move(key, TaskStatus.DONE, Stage.MERGED, commit=self.head, reason="Its conflict was resolved.")
        for key in boards.ready(self.specs, self.board):
            self._move(key, TaskStatus.READY, Stage.IDLE)

    def start(self) -> list[Send]:
        """Send developers to as many tasks as the settings allow at once, each with a visit number of its own."""
        sends = []
        for key in boards.startable(self.specs, self.board, self.context.run.config.parallelism):
            number = self.visits.get("dev_work", 0) + 1
            self.visits["dev_work"] = self.visits["lead_review"] = number
            card = self.board[key]
            if "commit" not in card:
                card["base"] = card["start"] = self.head
            self._move(key, TaskStatus.IN_PROGRESS, Stage.WORKING, iteration=card.get("rounds", 0) + 1)
            card["visit"] = number
            sends.append(Send("dev_work", {"job": self._job(key, number)}))
        return sends

    def onward(self) -> str:
        """Where the run goes when nobody is sent to work."""
        if boards.in_stage(self.board, Stage.EXHAUSTED):
            return "final_decision"
        if boards.is_finished(self.board):
            return "qa_test"
        stuck = ", ".join(key for key in boards.order(self.specs) if self.board[key]["status"] != TaskStatus.DONE)
        raise StepFailed("board_stuck", f"No task can begin, but these are not done: {stuck}.")

    def update(self) -> dict[str, Any]:
        """The update of the state, with the effects in the order in which things happened."""
        old = self.state["board"]
        self.effects.append(effects.close_findings(FindingSource.REVIEW, self._open_review_findings()))
        self.effects.append(trail.progress({**self.state, "board": self.board}, "dispatch"))
        return {
            "visits": {
                name: self.visits[name] for name in ("dispatch", "dev_work", "lead_review") if name in self.visits
            },
            "specs": {key: spec for key, spec in self.specs.items() if key not in self.state["specs"]},
            "board": {key: card for key, card in self.board.items() if card != old.get(key)},
            "head": self.head,
            "gates": self.gates,
            "effects": self.effects,
        }

    def _free(self, key: str, said: str) -> None:
        self._move(key, TaskStatus.READY, Stage.IDLE)
        card = self.board[key]
        card["feedback"] = [*card.get("feedback", []), said]

    def _conflict(self, key: str, paths: Sequence[str]) -> None:
        named = ", ".join(paths[:20])
        spec, card = self.specs[key], self.board[key]
        self.effects.append(
            effects.add_comment(
                Role.LEAD,
                CommentType.MERGE,
                f"The change does not merge: others changed {named} meanwhile.",
                task=key,
                blockers=[f"Conflict in {path}" for path in paths[:20]],
                next_steps=["Bring the change into the repository as it stands now."],
            )
        )
        if spec["kind"] == TaskKind.CONFLICT:
            self._rework(key, named)
            return
        number = 1 + sum(other["parent"] == key and other["kind"] == TaskKind.CONFLICT for other in self.specs.values())
        made = follow_up(
            f"conflict-{key}-{number}",
            len(self.specs) + 1,
            title=f"Resolve the conflict of {key}",
            kind=TaskKind.CONFLICT,
            description=f"{spec['title']}\n\n{spec['description']}\n\nIn conflict: {named}",
            criteria=spec["criteria"],
            parent=key,
        )
        self.specs[made["key"]], self.board[made["key"]] = made, new_card()
        card["stage"] = str(Stage.CONFLICTED)
        self.effects.append(trail.create(made))

    def _rework(self, key: str, named: str) -> None:
        card = self.board[key]
        config, rounds = self.context.run.config.review, card.get("rounds", 0)
        verdict = gates.attempt(config, iteration=rounds, trouble=f"it conflicts again in {named}.")
        self.effects += trail.verdict(verdict, task=key)
        self.gates |= trail.as_state(verdict, task=key)
        if verdict.decision is gates.Decision.FIX:
            card.update({"stage": str(Stage.SENT_BACK), "base": self.head, "start": self.head, "rounds": rounds + 1})
            card["feedback"] = [f"The repository moved on again; conflicts in {named}."]
        else:
            self._move(key, TaskStatus.BLOCKED, Stage.EXHAUSTED, reason=verdict.reason)

    def _move(self, key: str, to: TaskStatus, stage: Stage, **fields: Any) -> None:
        card = self.board[key]
        if to is TaskStatus.IN_PROGRESS and card["status"] == TaskStatus.CREATED:
            self._move(key, TaskStatus.READY, Stage.IDLE)
        card["status"], card["stage"] = str(to), str(stage)
        self.effects.append(effects.move_task(key, to, **fields))

    def _job(self, key: str, number: int) -> Job:
        spec, card = self.specs[key], self.board[key]
        parent = self.board.get(spec["parent"] or "") if spec["kind"] == TaskKind.CONFLICT else None
        return {
            "task": spec,
            "visit": number,
            "base": card["base"],
            "start": card["start"],
            "rounds": card.get("rounds", 0),
            "approach": str(self.state["plan"]["approach"]),
            "feedback": card.get("feedback", []),
            "summary": card.get("summary", ""),
            "conflict": [parent["base"], parent["commit"]] if parent else [],
            "accepted_tests": sorted(self.state.get("accepted_tests", {})),
        }

    def _open_review_findings(self) -> list[str]:
        return [name for names in self.state.get("review_findings", {}).values() for name in names]
