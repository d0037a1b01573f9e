"""What runs made: metadata; the bodies are in git or in the artifact store."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db.tables import Artifact
from backend.domain.ids import DEFAULT_TENANT
from backend.errors import NotFound
from backend.operations import pages

VIEW = pages.View(Artifact, leave_out=frozenset({"tenant_id"}))


async def get(session: AsyncSession, artifact_id: UUID, *, tenant_id: UUID = DEFAULT_TENANT) -> Artifact:
    """The artifact. Raises `NotFound`."""
    found = await session.scalar(select(Artifact).where(Artifact.id == artifact_id, Artifact.tenant_id == tenant_id))
    if found is None:
        raise NotFound(f"There is no artifact {artifact_id}.")
    return found


async def page(
    session: AsyncSession,
    wanted: pages.PageRequest,
    *,
    tenant_id: UUID = DEFAULT_TENANT,
    run_id: UUID | None = None,
    kind: str | None = None,
) -> pages.Page:
    """A page of the artifacts that fit, newest first."""
    where = [Artifact.tenant_id == tenant_id]
    if run_id is not None:
        where.append(Artifact.run_id == run_id)
    if kind is not None:
        where.append(Artifact.kind == kind)
    return await VIEW.page(session, wanted, *where)
