"""Questions over HTTP: what runs ask people."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from backend.adapters.db.tables import Question
from backend.api.dependencies import Posting, Reading, StrictRoute, Wanted, listing, shown
from backend.api.problems import documented
from backend.api.views import PageOf, view_model
from backend.domain.question import ExpiryAction, QuestionKind, QuestionStatus
from backend.operations import questions

router = APIRouter(prefix="/api/questions", tags=["questions"], route_class=StrictRoute)

QuestionView = view_model(
    "QuestionView",
    questions.VIEW,
    status=QuestionStatus,
    kind=QuestionKind,
    on_expiry=ExpiryAction,
    options=list[str],
)


class AnswerGiven(BaseModel):
    """An answer: one of the question's options where it has some."""

    model_config = ConfigDict(extra="forbid")
    answer: Annotated[str, Field(min_length=1, max_length=questions.MAX_ANSWER, examples=["approve", "1.50 usd"])]


@router.get("", response_model=PageOf[QuestionView], summary="List questions", responses=documented(422))  # type: ignore[valid-type]  # made from the table
async def list_questions(
    session: Reading, wanted: Wanted, run_id: UUID | None = None, status: QuestionStatus | None = QuestionStatus.OPEN
) -> Response:
    """Questions, newest first; open ones unless another status is asked for."""
    return listing(await questions.page(session, wanted, run_id=run_id, status=status))


@router.get("/{question_id}", response_model=QuestionView, summary="Read a question", responses=documented(404, 422))
async def read_question(question_id: UUID, session: Reading) -> Response:
    """One question."""
    await questions.get(session, question_id)
    return shown(await questions.VIEW.one(session, Question.id == question_id))


@router.post(
    "/{question_id}/answer",
    response_model=QuestionView,
    summary="Answer a question",
    responses=documented(404, 409, 422),
)
async def answer_question(question_id: UUID, body: AnswerGiven, command: Posting) -> Response:
    """Answer once; the run goes on when nothing more is open. A budget question is answered with what to add."""
    await questions.answer(command.session, question_id, body.answer, by=command.by)
    return await command.answer(await questions.VIEW.one(command.session, Question.id == question_id))
