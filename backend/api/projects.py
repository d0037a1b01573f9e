"""Projects over HTTP."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from backend.adapters.db.tables import Project
from backend.api.dependencies import (
    Changing,
    Here,
    IfMatch,
    Posting,
    Reading,
    Starting,
    StrictRoute,
    Wanted,
    listing,
    settings_in_config,
    shown,
)
from backend.api.problems import documented
from backend.api.runs import RunView
from backend.api.views import PageOf, view_model
from backend.domain.project import ProjectStatus
from backend.operations import projects, repositories, starting

router = APIRouter(prefix="/api/projects", tags=["projects"], route_class=StrictRoute)

ProjectView = view_model("ProjectView", projects.VIEW, status=ProjectStatus, config_patch=dict[str, Any])
ProjectListed = view_model("ProjectListed", projects.LISTED, status=ProjectStatus)

Patch = Annotated[
    dict[str, Any],
    Field(description="What differs, as nested settings", examples=[{"budget": {"usd": "2.50"}, "parallelism": 2}]),
]
Slug = Annotated[str, Field(min_length=1, max_length=100, examples=["standard"])]
Name = Annotated[str, Field(min_length=1, max_length=projects.MAX_NAME, examples=["Expense ledger"])]
Brief = Annotated[
    str,
    Field(
        description="What is to be built (Markdown), up to 200 kB",
        examples=["A Python library and command line that keeps a ledger of expenses."],
    ),
]
Version = Annotated[int, Field(ge=1, le=1_000_000)]


class ProjectCreate(BaseModel):
    """A new project."""

    model_config = ConfigDict(extra="forbid")
    name: Name
    brief: Brief
    template: Slug = "standard"
    template_version: Version | None = Field(default=None, description="The latest where none is given")
    config: Patch = Field(default_factory=dict)
    draft: bool = Field(default=False, description="A draft cannot be run until it is edited")


class ProjectPatch(BaseModel):
    """What is to change of a project; what is left out stays."""

    model_config = ConfigDict(extra="forbid")
    name: Name | None = None
    brief: Brief | None = None
    template: Slug | None = None
    template_version: Version | None = None
    config: Patch | None = None


class RunStart(BaseModel):
    """A new run; its settings are those of the template, the project and this patch, merged and pinned."""

    model_config = ConfigDict(extra="forbid")
    config: Patch = Field(default_factory=dict)


@router.post(
    "", status_code=201, response_model=ProjectView, summary="Make a project", responses=documented(404, 409, 422)
)
async def create_project(body: ProjectCreate, command: Posting) -> Response:
    """Make a project, ready to be run."""
    with settings_in_config():
        project = await projects.create(
            command.session,
            name=body.name,
            brief=body.brief,
            template_slug=body.template,
            template_version=body.template_version,
            config_patch=body.config,
            draft=body.draft,
            by=command.by,
        )
    row = await projects.VIEW.one(command.session, Project.id == project.id)
    return await command.answer(row, 201, Location=f"/api/projects/{project.id}", ETag=f'"{project.version}"')


@router.get("", response_model=PageOf[ProjectListed], summary="List projects", responses=documented(422))  # type: ignore[valid-type]  # made from the table
async def list_projects(
    session: Reading,
    wanted: Wanted,
    status: ProjectStatus | None = None,
    template: Annotated[str | None, Query(max_length=100)] = None,
    text: Annotated[str | None, Query(max_length=200, description="Looked for in names and briefs")] = None,
) -> Response:
    """Projects, newest first."""
    return listing(await projects.page(session, wanted, status=status, template=template, text=text))


@router.get("/{project_id}", response_model=ProjectView, summary="Read a project", responses=documented(404, 422))
async def read_project(project_id: UUID, session: Reading) -> Response:
    """One project with its brief and settings; its ETag is what an edit sends back as If-Match."""
    project = await projects.get(session, project_id)
    row = await projects.VIEW.one(session, Project.id == project_id)
    return shown(row, ETag=f'"{project.version}"')


@router.patch(
    "/{project_id}",
    response_model=ProjectView,
    summary="Edit a project",
    responses=documented(404, 409, 412, 422, 428),
)
async def edit_project(project_id: UUID, body: ProjectPatch, version: IfMatch, command: Changing) -> Response:
    """Change a project; its next run follows, a run on its way does not."""
    changes = projects.Edit(body.name, body.brief, body.template, body.template_version, body.config)
    with settings_in_config():
        project = await projects.edit(command.session, project_id, changes, expected_version=version, by=command.by)
    row = await projects.VIEW.one(command.session, Project.id == project_id)
    return shown(row, ETag=f'"{project.version}"')


@router.post(
    "/{project_id}/archive",
    response_model=ProjectView,
    summary="Put a project away",
    responses=documented(404, 409, 422),
)
async def archive_project(project_id: UUID, command: Posting) -> Response:
    """Put a project away; its runs stay readable."""
    project = await projects.archive(command.session, project_id, by=command.by)
    row = await projects.VIEW.one(command.session, Project.id == project_id)
    return await command.answer(row, ETag=f'"{project.version}"')


@router.delete("/{project_id}", status_code=204, summary="Delete a project", responses=documented(404, 409, 422))
async def delete_project(project_id: UUID, command: Changing, here: Here) -> Response:
    """Delete a project with its runs, repository, worktrees and artifacts."""
    await projects.delete(command.session, project_id, remove=partial(repositories.remove, here.home))
    return Response(status_code=204)


@router.post(
    "/{project_id}/runs",
    status_code=201,
    response_model=RunView,
    tags=["runs"],
    summary="Start a run",
    responses=documented(404, 409, 422, 503),
)
async def start_run(project_id: UUID, body: RunStart, asked: Starting, here: Here) -> Response:
    """Start a run; its settings are merged and pinned, and the workers are told."""
    with settings_in_config():
        run = await starting.start(
            asked.driver,
            project_id,
            patch=body.config,
            graph_version=here.graph_version,
            faults=here.faults,
            by=asked.by,
            correlation_id=asked.request_id,
            idempotency_key=asked.key,
        )
    return await asked.answer(run)
