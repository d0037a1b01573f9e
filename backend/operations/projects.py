"""What people can do with projects: create, edit, put away, delete."""

from __future__ import annotations

import unicodedata
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import delete as sql_delete
from sqlalchemy import func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db.tables import Artifact, Budget, Project, ProjectRun, ProjectTemplate
from backend.domain.config import Patch
from backend.domain.ids import DEFAULT_TENANT
from backend.domain.lifecycle import transition
from backend.domain.patch import merge
from backend.domain.project import MOVES, ProjectStatus
from backend.errors import Conflict, Fault, Invalid, NotFound
from backend.operations import events, pages

VIEW = pages.View(Project, leave_out=frozenset({"tenant_id"}))
LISTED = pages.View(Project, leave_out=frozenset({"tenant_id", "brief", "config_patch"}))

MAX_BRIEF_BYTES = 200_000
MAX_NAME = 200


@dataclass(frozen=True, slots=True)
class Edit:
    """What is to change of a project; None leaves a thing as it is."""

    name: str | None = None
    brief: str | None = None
    template_slug: str | None = None
    template_version: int | None = None
    config_patch: Patch | None = None


def check_brief(brief: str) -> str:
    """Return the brief as it is kept; raise `Invalid` for one that is empty, too long or not text."""

    def refuse(message: str, right: str) -> Invalid:
        return Invalid(message, code="invalid_brief", faults=[Fault("/brief", right)])

    if "\x00" in brief:
        raise refuse("The brief holds NUL characters; it looks like a binary file.", "plain text (Markdown) in UTF-8")
    if any("\ud800" <= char <= "\udfff" for char in brief):
        raise refuse("The brief holds half of a surrogate pair; save it as UTF-8.", "plain text (Markdown) in UTF-8")
    kept = brief.strip()
    if not kept:
        raise refuse("The brief is empty; say what is to be built.", "at least one sentence")
    size = len(kept.encode())
    if size > MAX_BRIEF_BYTES:
        raise refuse(
            f"The brief is {size:,} bytes long; at most {MAX_BRIEF_BYTES:,} are read. Say what matters, link the rest.",
            f"at most {MAX_BRIEF_BYTES:,} bytes",
        )
    odd = sum(unicodedata.category(char) == "Cc" and char not in "\t\n\r\f" for char in kept) + kept.count("\ufffd")
    if odd > len(kept) // 100:
        raise refuse("The brief looks like a binary file, not text.", "plain text (Markdown) in UTF-8")
    return kept


def check_name(name: str) -> str:
    """Return the name without white space around it; raise `Invalid` for an empty or overlong one."""
    kept = " ".join(name.split())
    if not kept or len(kept) > MAX_NAME:
        right = f"1 to {MAX_NAME} characters"
        raise Invalid(f"The name of a project has {right}.", faults=[Fault("/name", right)])
    return kept


async def get(
    session: AsyncSession, project_id: UUID, *, tenant_id: UUID = DEFAULT_TENANT, lock: bool = False
) -> Project:
    """The project; with `lock`, its row is ours until the transaction ends. Raises `NotFound`."""
    query = select(Project).where(Project.id == project_id, Project.tenant_id == tenant_id)
    if lock:
        query = query.with_for_update(key_share=True).execution_options(populate_existing=True)
    project = await session.scalar(query)
    if project is None:
        raise NotFound(f"There is no project {project_id}.")
    return project


async def page(
    session: AsyncSession,
    wanted: pages.PageRequest,
    *,
    tenant_id: UUID = DEFAULT_TENANT,
    status: ProjectStatus | None = None,
    template: str | None = None,
    text: str | None = None,
) -> pages.Page:
    """A page of the projects that fit, newest first; `text` is looked for in names and briefs."""
    where = [Project.tenant_id == tenant_id]
    if status is not None:
        where.append(Project.status == status)
    if template is not None:
        where.append(Project.template_slug == template)
    if text is not None:
        where.append(or_(Project.name.icontains(text, autoescape=True), Project.brief.icontains(text, autoescape=True)))
    return await LISTED.page(session, wanted, *where)


async def create(
    session: AsyncSession,
    *,
    name: str,
    brief: str,
    template_slug: str,
    template_version: int | None = None,
    config_patch: Patch | None = None,
    draft: bool = False,
    by: str,
    tenant_id: UUID = DEFAULT_TENANT,
) -> Project:
    """Make a project, READY to be run unless it is a draft.

    Raises `Invalid` for a brief that cannot be read or settings that cannot be merged, `NotFound` for an unknown or
    archived template.
    """
    template = await _template(session, tenant_id, template_slug, template_version)
    patch = config_patch or {}
    merge({"graph": template.graph}, template.config_patch, patch)
    project = Project(
        tenant_id=tenant_id,
        name=check_name(name),
        brief=check_brief(brief),
        status=ProjectStatus.DRAFT if draft else ProjectStatus.READY,
        template_slug=template.slug,
        template_version=template.version,
        config_patch=patch,
    )
    session.add(project)
    await session.flush()
    events.record_for_project(session, project, "project.created", {"name": project.name, "by": by})
    await session.flush()
    return project


async def edit(
    session: AsyncSession,
    project_id: UUID,
    changes: Edit,
    *,
    expected_version: int,
    by: str,
    tenant_id: UUID = DEFAULT_TENANT,
) -> Project:
    """Change a project; what changes counts from its next run on, and a resting project becomes READY.

    Raises `Conflict` when the project was changed since `expected_version` was read, or is archived.
    """
    project = await get(session, project_id, tenant_id=tenant_id, lock=True)
    check_version(project.version, expected_version, f"project {project.name}")
    if project.status == ProjectStatus.ARCHIVED:
        raise Conflict(f"Project {project.name} is ARCHIVED; it cannot be edited.")
    template = await _template(
        session,
        tenant_id,
        changes.template_slug or project.template_slug,
        changes.template_version if changes.template_slug or changes.template_version else project.template_version,
        offered=changes.template_slug is not None,
    )
    patch = project.config_patch if changes.config_patch is None else changes.config_patch
    merge({"graph": template.graph}, template.config_patch, patch)
    project.name = project.name if changes.name is None else check_name(changes.name)
    project.brief = project.brief if changes.brief is None else check_brief(changes.brief)
    project.template_slug, project.template_version, project.config_patch = template.slug, template.version, patch
    if project.active_run_id is None and project.status not in {ProjectStatus.READY, ProjectStatus.RUNNING}:
        project.status = transition(MOVES, ProjectStatus(project.status), ProjectStatus.READY, what="The project")
    return await _changed(session, project, "project.changed", by)


async def archive(session: AsyncSession, project_id: UUID, *, by: str, tenant_id: UUID = DEFAULT_TENANT) -> Project:
    """Put a project away; archiving twice is the same as once. Raises `Conflict` while it has a run on its way."""
    project = await get(session, project_id, tenant_id=tenant_id, lock=True)
    if project.status == ProjectStatus.ARCHIVED:
        return project
    _refuse_active(project, "archived")
    what = f"Project {project.name}"
    project.status = transition(MOVES, ProjectStatus(project.status), ProjectStatus.ARCHIVED, what=what)
    project.archived_at = func.clock_timestamp()
    return await _changed(session, project, "project.archived", by)


Remove = Callable[[UUID, Sequence[UUID], Sequence[str]], Awaitable[None]]
"""Removes the files of a project: its id, the ids of its runs, the hashes of bodies that only it had in the store."""


async def delete(session: AsyncSession, project_id: UUID, *, remove: Remove, tenant_id: UUID = DEFAULT_TENANT) -> None:
    """Delete a project with everything that its runs made: rows, repository, worktrees, artifacts.

    The files go just before the commit: an interrupted deletion leaves a project that can be deleted again, never
    files that nobody knows of. Raises `Conflict` while it has a run on its way.
    """
    run_ids = (
        await session.scalars(
            select(ProjectRun.id)
            .where(ProjectRun.project_id == project_id, ProjectRun.tenant_id == tenant_id)
            .order_by(ProjectRun.id)
            .with_for_update()
        )
    ).all()
    project = await get(session, project_id, tenant_id=tenant_id, lock=True)
    _refuse_active(project, "deleted")
    bodies = await _bodies_of(session, run_ids)
    await session.execute(sql_delete(Budget).where(Budget.owner_id.in_([project.id, *run_ids])))
    await session.execute(sql_delete(Project).where(Project.id == project.id))
    await remove(project_id, run_ids, bodies)


async def _bodies_of(session: AsyncSession, run_ids: Sequence[UUID]) -> Sequence[str]:
    """Hashes of stored bodies that no run of another project names."""
    mine = select(Artifact.sha256).where(Artifact.run_id.in_(run_ids), Artifact.commit.is_(None)).distinct()
    theirs = select(Artifact.sha256).where(Artifact.run_id.not_in(run_ids), Artifact.commit.is_(None))
    return (await session.scalars(mine.where(Artifact.sha256.not_in(theirs)))).all()


async def _template(
    session: AsyncSession, tenant_id: UUID, slug: str, version: int | None, *, offered: bool = True
) -> ProjectTemplate:
    """A version of a template, the latest where none is named; with `offered`, archived ones do not count."""
    query = select(ProjectTemplate).where(ProjectTemplate.tenant_id == tenant_id, ProjectTemplate.slug == slug)
    if version is not None:
        query = query.where(ProjectTemplate.version == version)
    if offered:
        query = query.where(ProjectTemplate.archived_at.is_(None))
    found = await session.scalar(query.order_by(ProjectTemplate.version.desc()).limit(1))
    if found is None:
        which = slug if version is None else f"{slug} version {version}"
        raise NotFound(f"There is no template {which}; `GET /api/templates` lists those that there are.")
    return found


def check_version(current: int, expected: int, what: str) -> None:
    """Raise `Conflict` when somebody changed a thing since it was read."""
    if current != expected:
        raise Conflict(
            f"Version {expected} of {what} was changed meanwhile (now {current}); read it again and redo the edit.",
            code="version_conflict",
        )


def _refuse_active(project: Project, what: str) -> None:
    if project.active_run_id is not None:
        raise Conflict(f"Project {project.name} has a run on its way; stop it before the project is {what}.")


async def _changed(session: AsyncSession, project: Project, event_type: str, by: str) -> Project:
    project.version += 1
    await session.flush()
    await session.refresh(project)
    payload: dict[str, Any] = {"name": project.name, "version": project.version, "by": by}
    events.record_for_project(session, project, event_type, payload)
    await session.flush()
    return project
