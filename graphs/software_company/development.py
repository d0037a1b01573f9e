"""The parallel nodes: a developer works on one task in a worktree of its own, the lead reads the real diff."""

from __future__ import annotations

from typing import Any

from langgraph.runtime import Runtime
from langgraph.types import Command, Send

from backend.agents import developer, lead
from backend.agents.desk import Desk
from backend.agents.loop import Ending, Work
from backend.domain import effect as effects
from backend.domain import gates, remit
from backend.domain.board import Card, Stage
from backend.domain.comment import CommentType
from backend.domain.effect import Effect
from backend.domain.finding import FindingSource, fingerprint
from backend.domain.gates import Decision, Gate, Verdict
from backend.domain.ports import Diff, RunContext, Visit, Worktree
from backend.domain.question import ExpiryAction, QuestionKind
from backend.domain.review import Review
from backend.domain.role import Role
from backend.domain.task import TaskStatus
from graphs.software_company import trail
from graphs.software_company.state import Job, JobInput, Update


async def dev_work(state: JobInput, runtime: Runtime[RunContext]) -> Command[Any]:
    """Let a developer work on its task, and commit what came of it."""
    job, context = state["job"], runtime.context
    key = job["task"]["key"]
    tree = await context.workspace.checkout(f"task-{key}", job["start"])
    desk = trail.desk(context, Role.DEVELOPER, Visit("dev_work", job["visit"], key), tree, kind=job["task"]["kind"])
    work = await _develop(context, desk, job, tree)
    commit = await _commit(context, desk, job, tree, work.summary)
    diff = await context.workspace.diff(job["base"], commit)
    await context.workspace.point(f"task/{context.run.number}/{key}", commit)
    await context.workspace.release(f"task-{key}")
    done: Job = {**job, "commit": commit, "summary": work.summary}
    asked = work.ending is Ending.ASKED or (work.ending is Ending.REPEATED and desk.may_ask)
    done["asked"], done["trouble"] = asked, "" if asked else _trouble(work, diff)
    card: Card = {"status": str(TaskStatus.IN_PROGRESS), "stage": str(Stage.WORKING), "start": commit, "commit": commit}
    recorded = [_progress(desk, done, work, diff)]
    if commit != job["start"]:
        recorded.insert(0, trail.commit_made(commit, role=Role.DEVELOPER, task=key))
    if work.summary:
        card["summary"] = work.summary
    if asked:
        question = f"{key}-{job['visit']}"
        card.update({"status": str(TaskStatus.BLOCKED), "stage": str(Stage.ASKED), "question": question})
        recorded += _question(context, done, work, question)
    return Command(update={"board": {key: card}, "effects": recorded}, goto=Send("lead_review", {"job": done}))


async def lead_review(state: JobInput, runtime: Runtime[RunContext]) -> Update:
    """Let the lead read the change and approve it or send it back; the review gate counts the rounds."""
    job, context = state["job"], runtime.context
    trail.enter(context, "lead_review", job["visit"], task=job["task"]["key"])
    if job["asked"]:
        return {"effects": []}
    if job["trouble"]:
        verdict = gates.attempt(context.run.config.review, iteration=job["rounds"], trouble=job["trouble"])
        return _reviewed(job, verdict, [job["trouble"]], [], [])
    if not trail.is_on(context, Role.LEAD):
        return _reviewed(job, gates.switched_off(Gate.REVIEW, Role.LEAD), [], [], [])
    review, desk = await _review(context, job)
    verdict = gates.review(
        context.run.config.review,
        iteration=job["rounds"],
        approved=review.decision == "approve",
        issues=len(review.findings),
    )
    findings, names = _findings(job, review)
    feedback = [f"{f.severity} {f.path}{f':{f.line}' if f.line else ''}: {f.message}" for f in review.findings]
    return _reviewed(job, verdict, feedback, [_review_comment(desk, job, review, verdict), *findings], names)


async def _develop(context: RunContext, desk: Desk, job: Job, tree: Worktree) -> Work:
    async def finish() -> str | None:
        commit = await _commit(context, desk, job, tree, "(not finished)")
        changed = await context.workspace.diff(job["base"], commit)
        if not changed.files:
            return "You have changed nothing. Do the task, and then submit."
        return remit.objection(Role.DEVELOPER, (file.path for file in changed.files), job["accepted_tests"])

    conflict = await context.workspace.diff(*job["conflict"]) if job["conflict"] else None
    return await developer.develop(
        desk,
        brief=context.run.brief,
        task=job["task"],
        approach=job["approach"],
        outline=await context.workspace.outline(job["start"]),
        accepted_tests=job["accepted_tests"],
        feedback=job["feedback"],
        summary=job["summary"],
        conflict=conflict.text if conflict else "",
        finish=finish,
    )


async def _commit(context: RunContext, desk: Desk, job: Job, tree: Worktree, summary: str) -> str:
    key = job["task"]["key"]
    subject = f"{key}: {trail.first_line(summary) or job['task']['title']}"
    return await context.workspace.commit(
        tree,
        author=Role.DEVELOPER,
        message=f"{subject}\n\n{summary}".strip(),
        trailers=trail.trailers(context, Role.DEVELOPER, desk.meter, task=key),
    )


def _trouble(work: Work, diff: Diff) -> str:
    if work.objection is not None:
        return work.objection
    if work.ending in (Ending.MALFORMED, Ending.CUT, Ending.REPEATED):
        return work.why
    return "" if diff.files else f"{work.why} Nothing was changed."


def _progress(desk: Desk, job: Job, work: Work, diff: Diff) -> Effect:
    waits = job["asked"] or bool(job["trouble"])
    return effects.add_comment(
        Role.DEVELOPER,
        CommentType.PROGRESS,
        work.summary or work.why,
        task=job["task"]["key"],
        metrics=trail.metrics(
            desk.meter,
            steps=work.steps,
            tools=work.tools,
            files=len(diff.files),
            added=sum(file.added for file in diff.files),
            removed=sum(file.removed for file in diff.files),
            round=job["rounds"],
        ),
        blockers=[work.question or job["trouble"] or work.why] if waits else [],
        next_steps=["A person answers."] if job["asked"] else ["The lead reads the diff."],
        rationale=work.why,
    )


def _question(context: RunContext, job: Job, work: Work, question: str) -> list[Effect]:
    key, people = job["task"]["key"], context.run.config.people
    text = work.question or f"The developer of {key} repeats itself and gets no further. What should it do?"
    return [
        effects.move_task(key, TaskStatus.BLOCKED, commit=job["commit"], reason="It waits for an answer."),
        effects.ask_question(
            question,
            QuestionKind.CLARIFICATION,
            text,
            asked_by=Role.DEVELOPER,
            options=work.options,
            default="Decide yourself and say so.",
            due_seconds=people.due_seconds,
            on_expiry=ExpiryAction(people.on_expiry),
            task=key,
        ),
    ]


async def _review(context: RunContext, job: Job) -> tuple[Review, Desk]:
    key, name = job["task"]["key"], f"review-{job['task']['key']}"
    tree = await context.workspace.checkout(name, job["commit"])
    desk = trail.desk(context, Role.LEAD, Visit("lead_review", job["visit"], key), tree, kind=job["task"]["kind"])
    diff = await context.workspace.diff(job["base"], job["commit"])
    review = await lead.review(
        desk, task=job["task"], diff=diff, summary=job["summary"], feedback=job["feedback"] if job["rounds"] else ()
    )
    await context.workspace.release(name)
    return review, desk


def _findings(job: Job, review: Review) -> tuple[list[Effect], list[str]]:
    recorded, names = [], []
    for found in review.findings:
        name = fingerprint("lead", "review", found.path, found.message)
        names.append(name)
        recorded.append(
            effects.record_finding(
                name,
                source=FindingSource.REVIEW,
                scanner="lead",
                rule="review",
                severity=found.severity,
                message=found.message,
                path=found.path,
                line=found.line,
                task=job["task"]["key"],
            )
        )
    return recorded, names


def _review_comment(desk: Desk, job: Job, review: Review, verdict: Verdict) -> Effect:
    lines = [f"{f.severity} `{f.path}{f':{f.line}' if f.line else ''}` {f.message}" for f in review.findings]
    return effects.add_comment(
        Role.LEAD,
        CommentType.REVIEW,
        review.summary + trail.section("Findings", lines),
        task=job["task"]["key"],
        metrics=trail.metrics(desk.meter, round=job["rounds"], findings=len(lines), decision=review.decision),
        blockers=lines if verdict.decision is Decision.FAIL else [],
        next_steps=["Mend the findings."] if verdict.decision is Decision.FIX else ["Merge."],
        rationale=verdict.reason,
    )


def _reviewed(
    job: Job, verdict: Verdict, feedback: list[str], recorded: list[Effect], open_findings: list[str]
) -> Update:
    key = job["task"]["key"]
    card: Card = {"status": str(TaskStatus.IN_PROGRESS), "stage": str(Stage.APPROVED), "feedback": feedback}
    recorded = [*recorded, *trail.verdict(verdict, task=key)]
    if verdict.decision is Decision.FIX:
        card.update({"stage": str(Stage.SENT_BACK), "rounds": job["rounds"] + 1})
    elif verdict.decision is Decision.FAIL:
        card.update({"status": str(TaskStatus.BLOCKED), "stage": str(Stage.EXHAUSTED)})
        recorded.append(effects.move_task(key, TaskStatus.BLOCKED, commit=job["commit"], reason=verdict.reason))
    return {
        "board": {key: card},
        "review_findings": {key: open_findings},
        "gates": trail.as_state(verdict, task=key),
        "effects": recorded,
    }
