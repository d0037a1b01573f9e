"""How a run of a project begins: one look at the project with its template, and one statement that writes.

A run is started more often than anything else is asked of the API, so its rows are not written by the mapper: the run,
its first event and the project's pointer to it are made together, and the answer is read from what was made. Nothing is
locked between the two: the statement writes only if the project is what was looked at, else it is looked at again.
Both go to the driver as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Text, Uuid, bindparam, cast, func, insert, literal_column, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db.direct import Direct
from backend.adapters.db.tables import Project, ProjectRun, ProjectTemplate, Table
from backend.domain.config import Patch, RunConfig
from backend.domain.ids import DEFAULT_TENANT
from backend.domain.patch import merge, snapshot
from backend.errors import Conflict, Fault, Invalid, NotFound
from backend.operations import events, projects, runs

CREATED = "run.created"
_TENANT = bindparam("tenant", type_=Uuid())
_PROJECT = Direct(
    select(
        Project.id,
        Project.tenant_id,
        Project.name,
        Project.brief,
        Project.status,
        Project.active_run_id,
        Project.template_slug,
        Project.template_version,
        cast(Project.config_patch, Text).label("patch"),
        cast(literal_column("projects.xmin"), Text).label("seen"),
        ProjectTemplate.graph,
        cast(ProjectTemplate.config_patch, Text).label("template_patch"),
    )
    .outerjoin(
        ProjectTemplate,
        (ProjectTemplate.tenant_id == Project.tenant_id)
        & (ProjectTemplate.slug == Project.template_slug)
        & (ProjectTemplate.version == Project.template_version),
    )
    .where(Project.id == bindparam("project", type_=Uuid()), Project.tenant_id == _TENANT)
)
"""What a run takes from its project and the template, and the transaction that wrote the project last."""
_LOOKS = 5
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
    """The statement that makes a run, its first event and the project's pointer to it, and shows the run.

    It makes nothing where the project was written to since it was seen; then there is no row.
    """
    tables = Table.metadata.tables
    runs_table, events_table, projects_table = tables["project_runs"], tables["events"], tables["projects"]
    unchanged = (
        select(projects_table.c.id)
        .where(projects_table.c.id == bindparam("run_project_id", type_=Uuid()))
        .where(cast(literal_column("projects.xmin"), Text) == bindparam("seen", type_=Text()))
        .with_for_update(key_share=True)
        .cte("unchanged")
    )
    given: dict[str, Any] = {name: bindparam(f"run_{name}", type_=runs_table.c[name].type) for name in _GIVEN}
    given["config_snapshot"] = cast(bindparam("run_config_snapshot", type_=Text()), JSONB)
    given |= {"number": runs.next_number(given["project_id"]), "event_seq": literal_column("1")}
    made = select(*given.values()).select_from(unchanged)
    run = insert(runs_table).from_select(list(given), made).returning(*runs_table.c).cte("run")
    owned = [run.c.tenant_id, run.c.project_id, run.c.id, run.c.event_seq, run.c.correlation_id]
    named = ["tenant_id", "project_id", "run_id", "seq", "correlation_id", "type", "source", "instance", "payload"]
    told = func.jsonb_build_object(
        *(_text("number"), run.c.number),
        *(_text("graph"), run.c.graph),
        *(_text("template"), run.c.template_slug),
        *(_text("by"), run.c.started_by),
    )
    said = [_text(CREATED), _text("api"), bindparam("instance", type_=Text()), told]
    event = insert(events_table).from_select(named, select(*owned, *said), include_defaults=False).cte("event")
    pointer = update(projects_table).where(projects_table.c.id == run.c.project_id).values(active_run_id=run.c.id)
    row = runs.VIEW.made(run)
    json = cast(func.row_to_json(literal_column("x")), Text)
    return select(row.c.id, row.c.number, row.c.version, json).add_cte(event, pointer.cte("pointer"))


def _text(constant: str) -> Any:
    """A constant that stands in the text of a statement."""
    return literal_column(f"'{constant}'", Text())


_START = Direct(_start())
_SAME_KEY = (ProjectRun.tenant_id == _TENANT) & (ProjectRun.idempotency_key == bindparam("key", type_=Text()))
_AGAIN = Direct(
    select(
        ProjectRun.project_id,
        ProjectRun.id,
        ProjectRun.number,
        ProjectRun.version,
        runs.VIEW.json(_SAME_KEY).scalar_subquery(),
    ).where(_SAME_KEY)
)


@dataclass(frozen=True, slots=True)
class Started:
    """A run that has begun, and how it is shown."""

    id: UUID
    number: int
    version: int
    json: str


async def start(
    driver: Any,
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
    """Begin a run of a project: its settings are merged and pinned. Who commits it has the workers told.

    `driver` is a connection of `direct`: without a transaction, the run is there for all when this returns.
    `graph_version` names the version of a graph that new runs follow (raises `Invalid` for an unknown graph), `faults`
    says what of a configuration cannot work on this installation (a missing key, an unpriced model). The same
    `idempotency_key` gives the same run again. Raises `Conflict` while another run of the project is on its way.
    """
    asked = {"project": project_id, "tenant": tenant_id}
    for _ in range(_LOOKS):
        project = await _PROJECT.row(driver, asked)
        if project is None:
            raise NotFound(f"There is no project {project_id}.")
        if idempotency_key is not None and (again := await _started_with(driver, project, idempotency_key)):
            return again
        runs.check_startable(project["name"], project["status"], project["active_run_id"])
        if project["graph"] is None:
            slug, version = project["template_slug"], project["template_version"]
            raise NotFound(f"There is no template {slug} version {version}.")
        config = merge({"graph": project["graph"]}, project["template_patch"], project["patch"], patch)
        if found := faults(config, project["brief"]):
            raise Invalid("The run cannot begin: " + " ".join(fault.message for fault in found), faults=found)
        told = {
            "instance": events.instance(),
            "seen": project["seen"],
            "run_tenant_id": tenant_id,
            "run_project_id": project["id"],
            "run_graph": config.graph,
            "run_graph_version": graph_version(config.graph),
            "run_template_slug": project["template_slug"],
            "run_template_version": project["template_version"],
            "run_brief": project["brief"],
            "run_config_snapshot": config.json_text,
            "run_limit_tokens": config.budget.tokens,
            "run_limit_usd": config.budget.usd,
            "run_limit_seconds": config.budget.seconds,
            "run_correlation_id": correlation_id,
            "run_started_by": by,
            "run_idempotency_key": idempotency_key,
        }
        made = await _START.row(driver, told)
        if made is not None:
            return Started(*made)
    raise Conflict(f"Project {project_id} is changed by others all the time; start the run again.")


async def _started_with(driver: Any, project: Mapping[str, Any], key: str) -> Started | None:
    run = await _AGAIN.row(driver, {"tenant": project["tenant_id"], "key": key})
    if run is None:
        return None
    project_id, *started = run
    if project_id != project["id"]:
        raise Conflict(f"The key {key} has already started a run of another project.", code="idempotency_conflict")
    return Started(*started)


async def under_key(
    session: AsyncSession, key: str, *, brief: str, template_slug: str, patch: Patch, tenant_id: UUID = DEFAULT_TENANT
) -> ProjectRun | None:
    """The run that was started with this key, None if there is none yet.

    Who asks with a key keeps others that ask with it waiting until its transaction ends. Raises `Conflict` when the run
    was started with another brief or template, or with other settings than `patch` names.
    """
    await session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"run {tenant_id} {key}", 0))))
    asked = (ProjectRun.tenant_id == tenant_id) & (ProjectRun.idempotency_key == key)
    run = await session.scalar(select(ProjectRun).where(asked))
    if run is None:
        return None
    kept = run.config_snapshot
    differs = {
        "brief": run.brief != projects.check_brief(brief),
        "template": run.template_slug != template_slug,
        "settings": snapshot(merge(kept, patch)) != snapshot(merge(kept)),
    }
    if found := [name for name, other in differs.items() if other]:
        raise Conflict(
            f"The key {key} has started run {run.id} with other {' and '.join(found)}; take a new key for a new run.",
            code="idempotency_conflict",
        )
    return run
