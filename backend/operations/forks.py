"""Forking a run: another run of the project that goes on from one of its checkpoints, with other settings.

The old run is only read. The fork has its own snapshot, ledger, log and branch; what stands before the checkpoint is
taken over as it was then, and is neither done nor paid again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import literal, select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db import forking
from backend.adapters.db.engine import ring_after_commit
from backend.adapters.db.forking import Kept
from backend.adapters.db.tables import Finding, ProjectRun, Question, Task, TaskComment
from backend.domain.comment import CommentType
from backend.domain.config import Patch, RunConfig
from backend.domain.ids import DEFAULT_TENANT
from backend.domain.patch import merge, snapshot
from backend.domain.question import QuestionStatus
from backend.domain.run import Request, RunStatus
from backend.errors import Conflict, Fault, Invalid, NotFound
from backend.operations import events, projects, runs

_SHOWN = 10
"""Kept checkpoints that a refusal names."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a fork stands on: `graph_found` refuses a graph version that is gone, `faults` settings that cannot work
    here, `branch` makes a branch of the project's repository (its name, the commit) and says whether it could.
    """

    graph_found: Callable[[str, str], object]
    faults: Callable[[RunConfig, str], Sequence[Fault]]
    branch: Callable[[UUID, str, str], Awaitable[bool]]


async def fork(
    session: AsyncSession,
    run_id: UUID,
    *,
    checkpoint_id: UUID | None = None,
    patch: Patch,
    place: Place,
    by: str,
    tenant_id: UUID = DEFAULT_TENANT,
    correlation_id: str = "",
) -> ProjectRun:
    """Begin a run of the same project from a checkpoint of this one: by default the newest with something left to do.

    Raises `Conflict` while a run of the project is on its way or when nothing would be left to do, `NotFound` for a
    checkpoint that is not kept, `Invalid` for settings that do not fit, `Unavailable` when the graph version is gone.
    """
    parent = await runs.get(session, run_id, tenant_id=tenant_id)
    project = await projects.get(session, parent.project_id, tenant_id=tenant_id, lock=True)
    runs.check_startable(project.name, project.status, project.active_run_id)
    place.graph_found(parent.graph, parent.graph_version)
    kept = await _checkpoint(session, parent, checkpoint_id)
    number = await session.scalar(select(runs.next_number(literal(project.id))))
    assert number is not None
    config = await _settings(session, parent, kept, patch, number, place)
    if found := place.faults(config, parent.brief):
        raise Invalid("The fork cannot begin: " + " ".join(fault.message for fault in found), faults=found)
    run = _row(parent, kept, config, number, by, correlation_id)
    run.prompts = None if _asks_for_prompts(patch) else parent.prompts
    session.add(run)
    await session.flush()
    project.active_run_id = run.id
    await forking.copy_rows(session, parent.id, kept.checkpoint_id, run.id)
    await _tell(session, run, parent, kept, by)
    run.head_checkpoint_id = kept.checkpoint_id
    await forking.copy_checkpoint(session, kept, run.id)
    ring_after_commit(session, run.id)
    await session.flush()
    return run


async def _checkpoint(session: AsyncSession, parent: ProjectRun, wanted: UUID | None) -> Kept:
    kept = await forking.ids_of(session, parent.id)
    over = parent.status == RunStatus.COMPLETED
    useful = [checkpoint for checkpoint in kept if not (over and checkpoint == parent.head_checkpoint_id)]
    listed = ", ".join(str(checkpoint) for checkpoint in useful[:_SHOWN]) or "none"
    more = f" and {len(useful) - _SHOWN} more" if len(useful) > _SHOWN else ""
    if wanted is not None and wanted not in kept:
        raise NotFound(f"Run {parent.number} keeps no checkpoint {wanted}. Kept are, newest first: {listed}{more}.")
    if wanted is not None and wanted not in useful:
        raise Conflict(
            f"Run {parent.number} is COMPLETED, and nothing is left to do at its last checkpoint. "
            f"Fork from an earlier one: {listed}{more}."
        )
    if not useful:
        raise Conflict(f"Run {parent.number} keeps no checkpoint to go on from; start a new run of the project.")
    found = await forking.checkpoint(session, parent.id, wanted or useful[0])
    assert found is not None
    return found


async def _settings(
    session: AsyncSession, parent: ProjectRun, kept: Kept, patch: Patch, number: int, place: Place
) -> RunConfig:
    """The parent's settings under the patch; a fork delivers to a branch of its own unless the patch names one."""
    if patch.get("graph", parent.graph) != parent.graph:
        right = f"{parent.graph}, the graph of run {parent.number}: a checkpoint fits no other"
        raise Invalid(f"A fork follows the graph it comes from: set graph to {right}.", faults=[Fault("/graph", right)])
    config = merge(parent.config_snapshot, patch)
    if "branch" in (patch.get("workspace") or {}):
        return config
    commit = _commit(kept.values, "head") or await _first_commit(session, parent)
    branch = f"fork/{number}"
    if commit is None or not await place.branch(parent.project_id, branch, commit):
        return config
    return merge(snapshot(config), {"workspace": {"branch": branch}})


def _asks_for_prompts(patch: Patch) -> bool:
    """Whether a fork shall not go on with the prompts of its parent; it is pinned like a new run then."""
    return any((seat or {}).get("prompt_version") is not None for seat in (patch.get("roles") or {}).values())


def _commit(values: Any, channel: str) -> str | None:
    found = values.get(channel)
    return found if isinstance(found, str) and len(found) in {40, 64} else None


async def _first_commit(session: AsyncSession, parent: ProjectRun) -> str | None:
    """The commit that the parent began from, where it came that far after the checkpoint."""
    return _commit({"base": await forking.newest_value(session, parent.id, "base")}, "base")


def _row(parent: ProjectRun, kept: Kept, config: RunConfig, number: int, by: str, correlation_id: str) -> ProjectRun:
    return ProjectRun(
        tenant_id=parent.tenant_id,
        project_id=parent.project_id,
        number=number,
        status=RunStatus.QUEUED,
        requested=Request.NONE,
        graph=parent.graph,
        graph_version=parent.graph_version,
        template_slug=parent.template_slug,
        template_version=parent.template_version,
        brief=parent.brief,
        config_snapshot=snapshot(config),
        limit_tokens=config.budget.tokens,
        limit_usd=config.budget.usd,
        limit_seconds=config.budget.seconds,
        current_node=", ".join(kept.following) or None,
        event_seq=0,
        parent_run_id=parent.id,
        parent_checkpoint_id=str(kept.checkpoint_id),
        correlation_id=correlation_id,
        started_by=by,
    )


async def _tell(session: AsyncSession, run: ProjectRun, parent: ProjectRun, kept: Kept, by: str) -> None:
    """Begin the fork's log with what it took over, so that the log alone tells how its rows came to be."""
    origin = {"parent_run_id": str(parent.id), "checkpoint_id": str(kept.checkpoint_id)}
    told = {"number": run.number, "graph": run.graph, "template": run.template_slug, "by": by} | origin
    events.record(session, run, "run.created", told)
    for task in await session.scalars(select(Task).where(Task.run_id == run.id).order_by(Task.created_at, Task.id)):
        made = {"task_id": str(task.id), "key": task.key, "title": task.title, "task_kind": task.kind}
        events.record(session, run, "task.created", made | {"role": task.assigned_role, "status": task.status})
        if task.commit is not None:
            commit = {"commit": task.commit, "role": task.assigned_role, "task": task.key, "merge": False}
            events.record(session, run, "commit.created", commit)
    for finding in await session.scalars(select(Finding).where(Finding.run_id == run.id).order_by(Finding.created_at)):
        names = ("fingerprint", "source", "scanner", "rule", "severity", "path", "line", "status")
        events.record(session, run, "finding.recorded", {name: getattr(finding, name) for name in names})
    for question in await session.scalars(select(Question).where(Question.run_id == run.id)):
        asked: dict[str, Any] = {
            "id": str(question.id),
            "key": question.key,
            "question_kind": question.kind,
            "text": question.text,
        }
        asked |= {"options": question.options, "default": question.default, "asked_by": question.asked_by}
        events.record(session, run, "question.asked", asked)
        if question.status != QuestionStatus.OPEN:
            answered = {"key": question.key, "kind": question.kind, "by": question.answered_by}
            events.record(session, run, "question.answered", answered)
    nodes = ", ".join(kept.following) or "where it stood"
    body = f"Forked by {by} from run {parent.number} at checkpoint `{kept.checkpoint_id}`; it goes on at {nodes}."
    session.add(
        TaskComment(
            tenant_id=run.tenant_id,
            run_id=run.id,
            author_name="engine",
            comment_type=CommentType.NOTE,
            body=body,
            metrics=origin,
        )
    )
    await session.flush()
