"""Event types: what can stand in the one log, and which of them end a run's stream."""

from __future__ import annotations

from backend.domain.run import RunStatus

EVENT_TYPES: dict[str, str] = {
    "run.created": "A run was asked for.",
    "run.started": "A worker claimed the run for the first time.",
    "run.resumed": "A worker took the run up again.",
    "run.pause_requested": "Somebody asked the run to hold.",
    "run.stop_requested": "Somebody asked the run to stop.",
    "run.resume_requested": "Somebody asked a held run to go on.",
    "run.retry_requested": "Somebody asked an ended run to go on from its last checkpoint.",
    "run.paused": "The run holds.",
    "run.waiting": "The run waits for an answer.",
    "run.completed": "The run ended well.",
    "run.failed": "The run ended because something could not be done.",
    "run.stopped_budget": "The run ended at a limit.",
    "run.stopped_security": "The run ended at the security gate.",
    "run.stopped_user": "The run ended because somebody stopped it.",
    "run.lease_lost": "A worker lost the run; another goes on.",
    "run.repaired": "What the run's rows said of it was put right by `company doctor`; `before` and `after` tell what.",
    "node.finished": "A node visit was committed; `next` names the nodes that start now.",
    "task.created": "A task was made.",
    "task.moved": "A task changed its status.",
    "task.changed": "Somebody edited a task.",
    "comment.added": "A comment was written.",
    "finding.recorded": "A finding was recorded.",
    "finding.waived": "Somebody let a finding pass until a date.",
    "findings.closed": "Findings were fixed.",
    "artifact.recorded": "Something was made.",
    "question.asked": "People are asked.",
    "question.answered": "A question was answered.",
    "question.expired": "A question was not answered in time.",
    "gate.decided": "A gate gave its verdict.",
    "model.called": "A model call was settled.",
    "model.failed": "An attempt at a model call failed.",
    "command.finished": "A command ran in the sandbox.",
    "commit.created": "A commit was made.",
    "branch.pushed": "The result was pushed to the remote, or the remote did not take it.",
    "budget.warned": "A share of a limit is used up.",
    "budget.exceeded": "A limit would have been passed.",
    "budget.degraded": "The run goes on with a cheaper model.",
    "budget.excess_billed": "A provider billed more than was asked for.",
    "project.created": "A project was made.",
    "project.changed": "A project was edited.",
    "project.archived": "A project was put away.",
}

ENDING_EVENT: dict[RunStatus, str] = {
    RunStatus.COMPLETED: "run.completed",
    RunStatus.FAILED: "run.failed",
    RunStatus.STOPPED_BUDGET: "run.stopped_budget",
    RunStatus.STOPPED_SECURITY: "run.stopped_security",
    RunStatus.STOPPED_USER: "run.stopped_user",
}
"""The event that tells of each end; a stream closes after one of these unless the run is retried."""
