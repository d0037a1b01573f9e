"""Artifacts over HTTP: what runs made."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote
from uuid import UUID

from fastapi import APIRouter, Query, Response

from backend.adapters.db.tables import Artifact
from backend.api.dependencies import Here, Reading, StrictRoute, Wanted, listing, shown
from backend.api.problems import documented
from backend.api.views import PageOf, view_model
from backend.operations import artifacts, repositories, runs

router = APIRouter(prefix="/api/artifacts", tags=["artifacts"], route_class=StrictRoute)

ArtifactView = view_model("ArtifactView", artifacts.VIEW)


@router.get("", response_model=PageOf[ArtifactView], summary="List artifacts", responses=documented(422))  # type: ignore[valid-type]  # made from the table
async def list_artifacts(
    session: Reading,
    wanted: Wanted,
    run_id: UUID | None = None,
    kind: Annotated[str | None, Query(max_length=100)] = None,
) -> Response:
    """Artifacts, newest first."""
    return listing(await artifacts.page(session, wanted, run_id=run_id, kind=kind))


@router.get("/{artifact_id}", response_model=ArtifactView, summary="Read an artifact", responses=documented(404, 422))
async def read_artifact(artifact_id: UUID, session: Reading) -> Response:
    """What is known of one artifact."""
    await artifacts.get(session, artifact_id)
    return shown(await artifacts.VIEW.one(session, Artifact.id == artifact_id))


@router.get(
    "/{artifact_id}/download",
    summary="Download an artifact",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {}}}, **documented(404, 422, 503)},
)
async def download_artifact(artifact_id: UUID, session: Reading, here: Here) -> Response:
    """Its body, never shown by a browser as a page of ours."""
    artifact = await artifacts.get(session, artifact_id)
    run = await runs.get(session, artifact.run_id)
    body = await repositories.body_of(here.home, run, artifact)
    name = quote(artifact.path.rsplit("/", 1)[-1] or "artifact")
    headers = {
        "Content-Disposition": f"attachment; filename*=UTF-8''{name}",
        "X-Content-Type-Options": "nosniff",
        "ETag": f'"{artifact.sha256}"',
    }
    return Response(body, media_type="application/octet-stream", headers=headers)
