"""Findings over HTTP: what scanners, tests and reviews found."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from backend.adapters.db.tables import Finding
from backend.api.dependencies import Posting, Reading, StrictRoute, Wanted, listing, shown
from backend.api.problems import documented
from backend.api.views import PageOf, view_model
from backend.domain.finding import FindingSource, FindingStatus, Severity
from backend.operations import findings

router = APIRouter(prefix="/api/findings", tags=["findings"], route_class=StrictRoute)

FindingView = view_model("FindingView", findings.VIEW, status=FindingStatus, severity=Severity, source=FindingSource)


class Waiver(BaseModel):
    """Who lets a finding pass, why, and until when."""

    model_config = ConfigDict(extra="forbid")
    by: Annotated[str, Field(min_length=1, max_length=200, examples=["ada"])]
    reason: Annotated[
        str, Field(min_length=1, max_length=findings.MAX_REASON, examples=["The value is a test vector of the RFC."])
    ]
    until: AwareDatetime = Field(examples=["2027-01-31T00:00:00Z"])


@router.get("", response_model=PageOf[FindingView], summary="List findings", responses=documented(422))  # type: ignore[valid-type]  # made from the table
async def list_findings(
    session: Reading,
    wanted: Wanted,
    run_id: UUID | None = None,
    status: FindingStatus | None = None,
    severity: Severity | None = None,
    source: FindingSource | None = None,
) -> Response:
    """Findings, newest first."""
    page = await findings.page(session, wanted, run_id=run_id, status=status, severity=severity, source=source)
    return listing(page)


@router.get("/{finding_id}", response_model=FindingView, summary="Read a finding", responses=documented(404, 422))
async def read_finding(finding_id: UUID, session: Reading) -> Response:
    """One finding."""
    await findings.get(session, finding_id)
    return shown(await findings.VIEW.one(session, Finding.id == finding_id))


@router.post(
    "/{finding_id}/waive", response_model=FindingView, summary="Waive a finding", responses=documented(404, 409, 422)
)
async def waive_finding(finding_id: UUID, body: Waiver, command: Posting) -> Response:
    """Let a finding pass until a date, by name and with a reason."""
    await findings.waive(command.session, finding_id, by=body.by, reason=body.reason, until=body.until)
    return await command.answer(await findings.VIEW.one(command.session, Finding.id == finding_id))
