"""Comments over HTTP: the audit trail, read and added to."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from backend.adapters.db.tables import TaskComment
from backend.api.dependencies import JSON, Posting, Reading, StrictRoute, Wanted, listing, shown
from backend.api.problems import documented
from backend.api.views import PageOf, view_model
from backend.domain.comment import CommentType
from backend.domain.role import Role
from backend.operations import comments

router = APIRouter(prefix="/api/comments", tags=["comments"], route_class=StrictRoute)

CommentView = view_model(
    "CommentView",
    comments.VIEW,
    comment_type=CommentType,
    author_role=Role,
    metrics=dict[str, Any],
    blockers=list[str],
    next_steps=list[str],
)


class CommentCreate(BaseModel):
    """A comment on a run, a task, or another comment (`parent_comment_id`), whose run and task it then shares."""

    model_config = ConfigDict(extra="forbid")
    body: Annotated[
        str,
        Field(
            min_length=1, max_length=comments.MAX_BODY, description="Markdown", examples=["Please keep **one** CLI."]
        ),
    ]
    run_id: UUID | None = None
    task_id: UUID | None = None
    parent_comment_id: UUID | None = None
    comment_type: CommentType = CommentType.NOTE


@router.post(
    "", status_code=201, response_model=CommentView, summary="Add a comment", responses=documented(404, 409, 422)
)
async def add_comment(body: CommentCreate, command: Posting) -> Response:
    """Add to the audit trail; comments are never changed."""
    comment = await comments.add(command.session, **body.model_dump(), by=command.by)
    row = await comments.VIEW.one(command.session, TaskComment.id == comment.id)
    return await command.answer(row, 201, Location=f"/api/comments/{comment.id}")


@router.get("", response_model=PageOf[CommentView], summary="List comments", responses=documented(422))  # type: ignore[valid-type]  # made from the table
async def list_comments(
    session: Reading,
    wanted: Wanted,
    run_id: UUID | None = None,
    task_id: UUID | None = None,
    comment_type: CommentType | None = None,
    role: Role | None = None,
) -> Response:
    """Comments, newest first."""
    page = await comments.page(session, wanted, run_id=run_id, task_id=task_id, comment_type=comment_type, role=role)
    return listing(page)


@router.get("/{comment_id}", response_model=CommentView, summary="Read a comment", responses=documented(404, 422))
async def read_comment(comment_id: UUID, session: Reading) -> Response:
    """One comment."""
    await comments.get(session, comment_id)
    return shown(await comments.VIEW.one(session, TaskComment.id == comment_id))


@router.get(
    "/{comment_id}/thread",
    response_model=list[CommentView],  # type: ignore[valid-type]  # made from the table
    summary="Read a thread",
    responses=documented(404, 422),
)
async def read_thread(comment_id: UUID, session: Reading) -> Response:
    """The whole thread that a comment belongs to, oldest first."""
    rows = await comments.thread(session, comment_id)
    return Response(f"[{','.join(rows)}]", media_type=JSON)
