"""Templates over HTTP: versioned presets of run settings."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from backend.adapters.db.tables import ProjectTemplate
from backend.api.dependencies import Posting, Reading, StrictRoute, Wanted, listing, shown
from backend.api.problems import documented
from backend.api.views import PageOf, view_model
from backend.operations import templates

router = APIRouter(prefix="/api/templates", tags=["templates"], route_class=StrictRoute)

TemplateView = view_model("TemplateView", templates.VIEW, config_patch=dict[str, Any])
TemplateListed = view_model("TemplateListed", templates.LISTED)

Slug = Annotated[str, Path(min_length=1, max_length=100, examples=["standard"])]
Version = Annotated[int, Path(ge=1, le=1_000_000)]


class TemplateCreate(BaseModel):
    """A new template, or the next version of one that people made."""

    model_config = ConfigDict(extra="forbid")
    slug: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[a-z0-9][a-z0-9-]*$", examples=["careful"])]
    title: Annotated[str, Field(min_length=1, max_length=200, examples=["Careful"])]
    description: Annotated[str, Field(max_length=5_000)] = ""
    graph: Annotated[str, Field(min_length=1, max_length=200)] = "software_company"
    config: Annotated[dict[str, Any], Field(examples=[{"review": {"max_iterations": 5}}])] = Field(default_factory=dict)


@router.get("", response_model=PageOf[TemplateListed], summary="List templates", responses=documented(422))  # type: ignore[valid-type]  # made from the table
async def list_templates(
    session: Reading,
    wanted: Wanted,
    slug: Annotated[str | None, Query(max_length=100)] = None,
    archived: Annotated[bool, Query(description="Whether versions that were put away are shown too")] = False,
) -> Response:
    """All versions, newest first."""
    return listing(await templates.page(session, wanted, slug=slug, archived=archived))


@router.post(
    "", status_code=201, response_model=TemplateView, summary="Make a template", responses=documented(409, 422)
)
async def create_template(body: TemplateCreate, command: Posting) -> Response:
    """Make a template or the next version of one; equal content gives the latest version again."""
    row = await templates.create(
        command.session,
        slug=body.slug,
        title=body.title,
        description=body.description,
        graph=body.graph,
        config_patch=body.config,
    )
    view = await templates.VIEW.one(command.session, ProjectTemplate.id == row.id)
    return await command.answer(view, 201, Location=f"/api/templates/{row.slug}/{row.version}")


@router.get("/{slug}", response_model=TemplateView, summary="Read a template", responses=documented(404, 422))
async def read_latest(slug: Slug, session: Reading) -> Response:
    """The latest version that is offered."""
    row = await templates.get(session, slug)
    return shown(await templates.VIEW.one(session, ProjectTemplate.id == row.id))


@router.get(
    "/{slug}/schema", response_model=dict[str, Any], summary="Read a template's schema", responses=documented(404, 422)
)
async def read_schema(slug: Slug, session: Reading) -> dict[str, Any]:
    """The JSON Schema of the settings, for forms and editors."""
    return await templates.schema(session, slug)


@router.get("/{slug}/{version}", response_model=TemplateView, summary="Read a version", responses=documented(404, 422))
async def read_version(slug: Slug, version: Version, session: Reading) -> Response:
    """One version, whether it is offered or not."""
    row = await templates.get(session, slug, version, archived=True)
    return shown(await templates.VIEW.one(session, ProjectTemplate.id == row.id))


@router.post(
    "/{slug}/{version}/archive",
    response_model=TemplateView,
    summary="Put a version away",
    responses=documented(404, 409, 422),
)
async def archive_version(slug: Slug, version: Version, command: Posting) -> Response:
    """Offer a version no longer; projects and runs that refer to it go on."""
    row = await templates.archive(command.session, slug, version)
    return await command.answer(await templates.VIEW.one(command.session, ProjectTemplate.id == row.id))
