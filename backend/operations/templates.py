"""What can be done with templates: load those that ship, make the next version, look at them, put them away."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from typing import Any
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db.tables import ProjectTemplate
from backend.domain.config import Patch
from backend.domain.ids import DEFAULT_TENANT
from backend.domain.template import Template, check, parse, settings_schema
from backend.errors import Conflict, Invalid, NotFound
from backend.operations import pages

VIEW = pages.View(ProjectTemplate, leave_out=frozenset({"tenant_id"}))
LISTED = pages.View(ProjectTemplate, leave_out=frozenset({"tenant_id", "config_patch"}))


def built_ins() -> list[Template]:
    """Read the templates that ship, sorted by slug and version; raises `Invalid` for one that is not in order."""
    found = []
    for folder in resources.files("templates").iterdir():
        if not folder.is_dir() or folder.name in ("showcases", "__pycache__"):
            continue
        for file in folder.iterdir():
            if file.name.endswith(".yaml"):
                template = parse(file.read_text("utf-8"), name=f"{folder.name}/{file.name}")
                if (template.slug, f"{template.version}.yaml") != (folder.name, file.name):
                    raise Invalid(
                        f"The file templates/{folder.name}/{file.name} says {template.slug} {template.version}."
                    )
                found.append(template)
    return sorted(found, key=lambda template: (template.slug, template.version))


async def load_built_ins(session: AsyncSession, templates: Sequence[Template] | None = None) -> int:
    """Put the templates that ship into the database; return how many were new.

    Doing it twice, or from several processes at once, is the same as once. Raises `Conflict` where a file was changed
    without a new version: runs refer to versions, so a version never changes.
    """
    added = 0
    for template in built_ins() if templates is None else templates:
        values = _row(template, DEFAULT_TENANT, built_in=True)
        made = await session.scalar(
            insert(ProjectTemplate).values(values).on_conflict_do_nothing().returning(ProjectTemplate.id)
        )
        if made is not None:
            added += 1
            continue
        kept = await get(session, template.slug, template.version, archived=True)
        if kept.content_hash != template.content_hash or not kept.built_in:
            raise Conflict(
                f"The template {template.slug} version {template.version} differs from the one in the database: "
                f"save the change as templates/{template.slug}/{template.version + 1}.yaml with the next version.",
                code="template_changed",
            )
    return added


async def create(
    session: AsyncSession,
    *,
    slug: str,
    title: str,
    description: str = "",
    graph: str = "software_company",
    config_patch: Patch | None = None,
    tenant_id: UUID = DEFAULT_TENANT,
) -> ProjectTemplate:
    """Make a new template, or the next version of one; equal content gives the latest version again.

    Raises `Invalid` for settings that do not fit and `Conflict` for a slug that ships with the company.
    """
    await session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"template/{tenant_id}/{slug}", 0))))
    query = select(ProjectTemplate).where(ProjectTemplate.tenant_id == tenant_id, ProjectTemplate.slug == slug)
    latest = await session.scalar(query.order_by(ProjectTemplate.version.desc()).limit(1))
    if latest is not None and latest.built_in:
        raise Conflict(f"The template {slug} ships with the company and cannot be changed; take another slug.")
    version = 1 if latest is None else latest.version + 1
    content = {"slug": slug, "version": version, "title": title, "description": description, "graph": graph}
    template = check({**content, "config": config_patch or {}}, name=slug)
    if latest is not None and latest.archived_at is None and latest.content_hash == _hash_as(template, latest.version):
        return latest
    row = ProjectTemplate(**_row(template, tenant_id, built_in=False))
    session.add(row)
    await session.flush()
    return row


async def get(
    session: AsyncSession,
    slug: str,
    version: int | None = None,
    *,
    tenant_id: UUID = DEFAULT_TENANT,
    archived: bool = False,
) -> ProjectTemplate:
    """Return a version of a template, the latest where none is named; archived ones only when asked for."""
    query = select(ProjectTemplate).where(ProjectTemplate.tenant_id == tenant_id, ProjectTemplate.slug == slug)
    if version is not None:
        query = query.where(ProjectTemplate.version == version)
    elif not archived:
        query = query.where(ProjectTemplate.archived_at.is_(None))
    found = await session.scalar(query.order_by(ProjectTemplate.version.desc()).limit(1))
    if found is None:
        which = slug if version is None else f"{slug} version {version}"
        raise NotFound(f"There is no template {which}.")
    return found


async def page(
    session: AsyncSession,
    wanted: pages.PageRequest,
    *,
    slug: str | None = None,
    archived: bool = False,
    tenant_id: UUID = DEFAULT_TENANT,
) -> pages.Page:
    """One page of template versions, newest first; archived ones only when asked for."""
    where = [ProjectTemplate.tenant_id == tenant_id]
    if slug is not None:
        where.append(ProjectTemplate.slug == slug)
    if not archived:
        where.append(ProjectTemplate.archived_at.is_(None))
    return await LISTED.page(session, wanted, *where)


async def archive(
    session: AsyncSession, slug: str, version: int, *, tenant_id: UUID = DEFAULT_TENANT
) -> ProjectTemplate:
    """Put a version away: it is offered no longer, and runs that refer to it go on. Twice is the same as once."""
    row = await get(session, slug, version, tenant_id=tenant_id, archived=True)
    if row.archived_at is None:
        row.archived_at = await session.scalar(select(func.clock_timestamp()))
        await session.flush()
    return row


async def schema(session: AsyncSession, slug: str, *, tenant_id: UUID = DEFAULT_TENANT) -> dict[str, Any]:
    """Return the JSON Schema of the settings over a template, for forms and editors, with its values as example."""
    row = await get(session, slug, tenant_id=tenant_id)
    about = f"What differs from the template {row.slug} version {row.version}."
    return {**settings_schema(), "description": about, "examples": [row.config_patch]}


def _row(template: Template, tenant_id: UUID, *, built_in: bool) -> dict[str, Any]:
    return {
        "tenant_id": tenant_id,
        "slug": template.slug,
        "version": template.version,
        "title": template.title,
        "description": template.description,
        "graph": template.graph,
        "config_patch": json.loads(json.dumps(template.config, default=str)),
        "content_hash": template.content_hash,
        "built_in": built_in,
    }


def _hash_as(template: Template, version: int) -> str:
    return template.model_copy(update={"version": version}).content_hash
