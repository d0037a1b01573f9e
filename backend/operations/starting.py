"""How a run of a project begins: one look at the project under its lock with its template, and a statement that writes.

A run is started more often than anything else is asked of the API, so its rows are not written by the mapper: the run,
its first event and the project's pointer to it are made together, and the answer is read from what was made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import (
    Row,
    Select,
    Text,
    Uuid,
    bindparam,
    cast,
    func,
    insert,
    literal,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db.engine import ring_after_commit
from backend.adapters.db.tables import Project, ProjectRun, ProjectTemplate, Table
from backend.domain.config import Patch, RunConfig
from backend.domain.ids import DEFAULT_TENANT
from backend.domain.patch import merge
from backend.errors import Conflict, Fault, Invalid, NotFound
from backend.operations import events, runs

CREATED = "run.created"
_TENANT = bindparam("tenant", type_=Uuid())
_TEMPLATE = select(ProjectTemplate.graph, ProjectTemplate.config_patch).where(
    ProjectTemplate.tenant_id == _TENANT,
    ProjectTemplate.slug == bindparam("slug", type_=Text()),
    ProjectTemplate.version == bindparam("version"),
)
_PROJECT: Select[Any] = (
    select(
        *Project.__table__.c,
        ProjectTemplate.graph.label("template_graph"),
        ProjectTemplate.config_patch.label("template_patch"),
    )
    .outerjoin(
        ProjectTemplate,
        (ProjectTemplate.tenant_id == Project.tenant_id)
        & (ProjectTemplate.slug == Project.template_slug)
        & (ProjectTemplate.version == Project.template_version),
    )
    .where(Project.id == bindparam("project", type_=Uuid()), Project.tenant_id == _TENANT)
    .with_for_update(key_share=True, of=Project)
)
"""A project, locked, with its template; without, where an edit took another template while the lock was waited for."""
_GIVEN = (
    "tenant_id",
    "project_id",
    "graph",
    "graph_version",
    "template_slug",
    "template_version",
    "brief",
    "config_snapshot",
    "limit_tokens",
    "limit_usd",
    "limit_seconds",
    "correlation_id",
    "started_by",
    "idempotency_key",
)
"""What a new run is given; all else begins with its default."""


def _start() -> Any:
    """The statement that makes a run, its first event and the project's pointer to it, and shows the run."""
    tables = Table.metadata.tables
    runs_table, events_table, projects_table = tables["project_runs"], tables["events"], tables["projects"]
    given: dict[str, Any] = {name: bindparam(f"run_{name}", type_=runs_table.c[name].type) for name in _GIVEN}
    given["config_snapshot"] = cast(bindparam("run_config_snapshot", type_=Text()), JSONB)
    given |= {"number": runs.next_number(given["project_id"]), "event_seq": literal(1)}
    run = insert(runs_table).values(given).returning(*runs_table.c).cte("run")
    owned = [run.c.tenant_id, run.c.project_id, run.c.id, run.c.event_seq, run.c.correlation_id]
    named = ["tenant_id", "project_id", "run_id", "seq", "correlation_id", "type", "source", "instance", "payload"]
    told = func.jsonb_build_object(
        "number", run.c.number, "graph", run.c.graph, "template", run.c.template_slug, "by", run.c.started_by
    )
    said = [literal(CREATED), literal("api"), bindparam("instance", type_=Text()), told]
    event = insert(events_table).from_select(named, select(*owned, *said), include_defaults=False).cte("event")
    pointer = update(projects_table).where(projects_table.c.id == run.c.project_id).values(active_run_id=run.c.id)
    row = runs.VIEW.made(run)
    json = cast(func.row_to_json(literal_column("x")), Text)
    return select(row.c.id, row.c.number, row.c.version, json).add_cte(event, pointer.cte("pointer"))


_START = _start()


@dataclass(frozen=True, slots=True)
class Started:
    """A run that has begun, and how it is shown."""

    id: UUID
    number: int
    version: int
    json: str


async def start(
    session: AsyncSession,
    project_id: UUID,
    *,
    patch: Patch,
    graph_version: Callable[[str], str],
    faults: Callable[[RunConfig, str], Sequence[Fault]],
    by: str,
    tenant_id: UUID = DEFAULT_TENANT,
    correlation_id: str = "",
    idempotency_key: str | None = None,
) -> Started:
    """Begin a run of a project: its settings are merged and pinned, and the workers are told.

    `graph_version` names the version of a graph that new runs follow (raises `Invalid` for an unknown graph), `faults`
    says what of a configuration cannot work on this installation (a missing key, an unpriced model). The same
    `idempotency_key` gives the same run again. Raises `Conflict` while another run of the project is on its way.
    """
    asked = {"project": project_id, "tenant": tenant_id}
    project: Row[Any] | None = (await session.execute(_PROJECT, asked)).one_or_none()
    if project is None:
        raise NotFound(f"There is no project {project_id}.")
    if idempotency_key is not None and (again := await _started_with(session, project, idempotency_key)):
        return again
    runs.check_startable(project)
    graph, preset = await _template(session, project)
    config = merge({"graph": graph}, preset, project.config_patch, patch)
    if found := faults(config, project.brief):
        raise Invalid("The run cannot begin: " + " ".join(fault.message for fault in found), faults=found)
    given: Mapping[str, Any] = {
        "tenant_id": tenant_id,
        "project_id": project.id,
        "graph": config.graph,
        "graph_version": graph_version(config.graph),
        "template_slug": project.template_slug,
        "template_version": project.template_version,
        "brief": project.brief,
        "config_snapshot": config.json_text,
        "limit_tokens": config.budget.tokens,
        "limit_usd": config.budget.usd,
        "limit_seconds": config.budget.seconds,
        "correlation_id": correlation_id,
        "started_by": by,
        "idempotency_key": idempotency_key,
    }
    told = {f"run_{name}": value for name, value in given.items()} | {"instance": events.instance()}
    started = Started(*(await session.execute(_START, told)).one())
    ring_after_commit(session, started.id)
    return started


async def _template(session: AsyncSession, project: Row[Any]) -> tuple[str, Patch]:
    """The graph and the patch of a project's template."""
    if project.template_graph is not None:
        return project.template_graph, project.template_patch
    slug, version = project.template_slug, project.template_version
    asked = {"tenant": project.tenant_id, "slug": slug, "version": version}
    found = (await session.execute(_TEMPLATE, asked)).one_or_none()
    if found is None:
        raise NotFound(f"There is no template {slug} version {version}.")
    return found.graph, found.config_patch


async def _started_with(session: AsyncSession, project: Row[Any], key: str) -> Started | None:
    run = await session.scalar(
        select(ProjectRun).where(ProjectRun.tenant_id == project.tenant_id, ProjectRun.idempotency_key == key)
    )
    if run is None:
        return None
    if run.project_id != project.id:
        raise Conflict(f"The key {key} has already started a run of another project.", code="idempotency_conflict")
    return Started(run.id, run.number, run.version, await runs.VIEW.one(session, ProjectRun.id == run.id))
