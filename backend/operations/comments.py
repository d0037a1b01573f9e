"""The audit trail as people use it: read it, and add to it in threads. Nothing in it is ever changed."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from backend.adapters.db.tables import TaskComment
from backend.domain.comment import CommentType
from backend.domain.ids import DEFAULT_TENANT
from backend.domain.role import Role
from backend.errors import Fault, Invalid
from backend.operations import events, pages, runs, tasks

VIEW = pages.View(TaskComment, leave_out=frozenset({"tenant_id"}))
MAX_BODY = 100_000
MAX_THREAD = 1_000


async def get(session: AsyncSession, comment_id: UUID, *, tenant_id: UUID = DEFAULT_TENANT) -> TaskComment:
    """The comment. Raises `NotFound`."""
    return await pages.owned(session, TaskComment, comment_id, tenant_id, "comment")


async def page(
    session: AsyncSession,
    wanted: pages.PageRequest,
    *,
    tenant_id: UUID = DEFAULT_TENANT,
    run_id: UUID | None = None,
    task_id: UUID | None = None,
    comment_type: CommentType | None = None,
    role: Role | None = None,
) -> pages.Page:
    """A page of the comments that fit, newest first."""
    return await VIEW.page(
        session,
        wanted,
        *pages.fitting(
            TaskComment, tenant_id, run_id=run_id, task_id=task_id, comment_type=comment_type, author_role=role
        ),
    )


async def thread(session: AsyncSession, comment_id: UUID, *, tenant_id: UUID = DEFAULT_TENANT) -> list[str]:
    """The whole thread that a comment belongs to, oldest first, as JSON."""
    await get(session, comment_id, tenant_id=tenant_id)
    up = select(TaskComment.id, TaskComment.parent_comment_id).where(TaskComment.id == comment_id).cte(recursive=True)
    above = aliased(TaskComment)
    up = up.union_all(select(above.id, above.parent_comment_id).where(above.id == up.c.parent_comment_id))
    root = select(up.c.id).where(up.c.parent_comment_id.is_(None)).scalar_subquery()
    down = select(TaskComment.id).where(TaskComment.id == root).cte(recursive=True)
    below = aliased(TaskComment)
    down = down.union_all(select(below.id).where(below.parent_comment_id == down.c.id))
    order = (TaskComment.created_at, TaskComment.id)
    return await VIEW.all(session, TaskComment.id.in_(select(down.c.id)), order_by=order, limit=MAX_THREAD)


async def add(
    session: AsyncSession,
    *,
    run_id: UUID | None = None,
    task_id: UUID | None = None,
    parent_comment_id: UUID | None = None,
    body: str,
    by: str,
    comment_type: CommentType = CommentType.NOTE,
    tenant_id: UUID = DEFAULT_TENANT,
) -> TaskComment:
    """Say something about a run, a task, or in reply to a comment (which names its run and task).

    Raises `Invalid` for a comment that is about nothing, or about things of different runs.
    """
    if not body.strip() or len(body) > MAX_BODY:
        right = f"1 to {MAX_BODY:,} characters"
        raise Invalid(f"The body of a comment has {right}.", faults=[Fault("/body", right)])
    if parent_comment_id is not None:
        parent = await get(session, parent_comment_id, tenant_id=tenant_id)
        run_id = _same(run_id, parent.run_id, "/run_id")
        task_id = _same(task_id, parent.task_id, "/task_id") if parent.task_id else task_id
    if task_id is not None:
        run_id = _same(run_id, (await tasks.get(session, task_id, tenant_id=tenant_id)).run_id, "/run_id")
    if run_id is None:
        raise Invalid("Say what the comment is about.", faults=[Fault("", "one of run_id, task_id, parent_comment_id")])
    run = await runs.get(session, run_id, tenant_id=tenant_id, lock=True)
    comment = TaskComment(
        tenant_id=tenant_id,
        run_id=run_id,
        task_id=task_id,
        parent_comment_id=parent_comment_id,
        author_name=by,
        comment_type=comment_type,
        body=body,
    )
    session.add(comment)
    await session.flush()
    payload = {
        "comment": str(comment.id),
        "task": str(task_id) if task_id else None,
        "author": by,
        "type": comment_type,
    }
    events.record(session, run, "comment.added", payload)
    await session.flush()
    return comment


def _same(given: UUID | None, found: UUID, pointer: str) -> UUID:
    if given is not None and given != found:
        raise Invalid(
            "The comment names things of different runs.", faults=[Fault(pointer, f"{found}, or leave it out")]
        )
    return found
