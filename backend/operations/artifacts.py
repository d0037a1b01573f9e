"""What runs made: metadata; the bodies are in git or in the artifact store."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db.tables import Artifact
from backend.domain.ids import DEFAULT_TENANT
from backend.operations import pages

VIEW = pages.View(Artifact, leave_out=frozenset({"tenant_id"}))


async def get(session: AsyncSession, artifact_id: UUID, *, tenant_id: UUID = DEFAULT_TENANT) -> Artifact:
    """The artifact. Raises `NotFound`."""
    return await pages.owned(session, Artifact, artifact_id, tenant_id, "artifact")


async def page(
    session: AsyncSession,
    wanted: pages.PageRequest,
    *,
    tenant_id: UUID = DEFAULT_TENANT,
    run_id: UUID | None = None,
    kind: str | None = None,
) -> pages.Page:
    """A page of the artifacts that fit, newest first."""
    return await VIEW.page(session, wanted, *pages.fitting(Artifact, tenant_id, run_id=run_id, kind=kind))
