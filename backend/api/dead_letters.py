"""Dead letters over HTTP: what could not be executed, and doing it again."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Response

from backend.adapters.db.tables import DeadLetter
from backend.api.dependencies import Posting, Reading, StrictRoute, Wanted, listing, shown
from backend.api.problems import documented
from backend.api.views import PageOf, view_model
from backend.operations import dead_letters

router = APIRouter(prefix="/api/dead-letters", tags=["dead letters"], route_class=StrictRoute)

DeadLetterView = view_model(
    "DeadLetterView", dead_letters.VIEW, kind=Literal["run", "delivery"], payload=dict[str, Any]
)


@router.get("", response_model=PageOf[DeadLetterView], summary="List dead letters", responses=documented(422))  # type: ignore[valid-type]  # made from the table
async def list_dead_letters(
    session: Reading,
    wanted: Wanted,
    run_id: UUID | None = None,
    replayed: Annotated[bool | None, Query(description="Only those that were, or were not, done again")] = None,
) -> Response:
    """What could not be executed, newest first."""
    return listing(await dead_letters.page(session, wanted, run_id=run_id, replayed=replayed))


@router.get("/{letter_id}", response_model=DeadLetterView, summary="Read a dead letter", responses=documented(404, 422))
async def read_dead_letter(letter_id: UUID, session: Reading) -> Response:
    """One dead letter: the node, the fence and the last error."""
    await dead_letters.get(session, letter_id)
    return shown(await dead_letters.VIEW.one(session, DeadLetter.id == letter_id))


@router.post(
    "/{letter_id}/replay",
    response_model=DeadLetterView,
    summary="Replay a dead letter",
    responses=documented(404, 409, 422),
)
async def replay_dead_letter(letter_id: UUID, command: Posting) -> Response:
    """Let its run go on from the last checkpoint; replaying twice is the same as once."""
    await dead_letters.replay(command.session, letter_id, by=command.by)
    return await command.answer(await dead_letters.VIEW.one(command.session, DeadLetter.id == letter_id))
