"""What is known about a run beyond its row: report, cost, timeline, checkpoints, graph, diff, archive."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from backend.api.dependencies import JSON, Here, Reading, StrictRoute
from backend.api.problems import documented
from backend.api.views import Money
from backend.operations import checkpoints, comparisons, costs, reports, repositories, runs, timeline

router = APIRouter(prefix="/api/runs/{run_id}", tags=["runs"], route_class=StrictRoute)

Limit = Annotated[int, Query(ge=1, le=200, description="Entries of a page")]
Skip = Annotated[int, Query(ge=0, le=1_000_000, description="Entries to leave out")]


class CostLine(BaseModel):
    """What one part has cost; which fields name the part depends on the side."""

    role: str | None = None
    node: str | None = None
    visit: int | None = None
    provider: str | None = None
    model: str | None = None
    task_key: str | None = None
    calls: int
    tokens_input: int
    tokens_output: int
    tokens_cached: int
    cost_usd: Money
    seconds: str = Field(examples=["12.500000"], description="From sending to the end of each call, added up")


class Cost(BaseModel):
    """What a run has cost, from every side; each side adds up to `spent`."""

    run_id: UUID
    limits: dict[str, Any] = Field(examples=[{"tokens": None, "usd": "2.000000", "seconds": None}])
    spent: dict[str, Any] = Field(examples=[{"tokens": 4_200, "usd": "0.013250", "seconds": "12.500000"}])
    saved: dict[str, Any] = Field(
        examples=[{"calls": 3, "tokens": 360, "usd": "0.000420"}],
        description="What was not paid again: replies of the journal to visits that ran again after a crash or a pause",
    )
    reserved: dict[str, Any] = Field(examples=[{"tokens": 0, "usd": "0.000000"}])
    by_role: list[CostLine]
    by_node: list[CostLine]
    by_visit: list[CostLine]
    by_model: list[CostLine]
    by_task: list[CostLine]


class Entry(BaseModel):
    """One line of a run's timeline."""

    at: str = Field(examples=["2026-11-21T08:00:00.000000Z"])
    seq: int | None = Field(description="Number of the event; null for comments")
    entry: Literal["event", "comment"]
    what: str = Field(examples=["task.moved"])
    who: str = Field(examples=["engine"])
    says: str


class Shape(BaseModel):
    """A run's graph and where the run stands in it."""

    graph: str
    version: str
    nodes: list[str]
    edges: list[dict[str, Any]] = Field(
        examples=[[{"source": "qa_test", "target": "security_scan", "conditional": True}]]
    )
    current_node: str | None
    visits: dict[str, int] = Field(description="Finished visits of each node")


class DiffFileView(BaseModel):
    """One file of a diff."""

    path: str
    status: str
    added: int
    removed: int


class DiffView(BaseModel):
    """What a run changed."""

    base: str | None
    commit: str
    text: str
    files: list[DiffFileView]
    truncated: bool


class Comparison(BaseModel):
    """Two runs beside each other."""

    runs: list[dict[str, Any]] = Field(description="The report of each, with findings, tests and gate verdicts")
    no_diff: str | None = Field(description="Why there is no diff; null where there is one")
    diff_stat: dict[str, int] = Field(examples=[{"files": 2, "added": 10, "removed": 3}])
    diff: str | None = Field(description="From the first result to the second")
    diff_truncated: bool


@router.get("/report", summary="Read a run's report", response_model=dict[str, Any], responses=documented(404, 422))
async def read_report(run_id: UUID, session: Reading) -> dict[str, Any]:
    """The final report; while the run is on its way, what is done so far."""
    run = await runs.get(session, run_id)
    return await reports.of_run(session, run)


@router.get("/cost", summary="Read what a run has cost", response_model=Cost, responses=documented(404, 422))
async def read_cost(run_id: UUID, session: Reading) -> Response:
    """Totals, limits, and the cost by role, node, visit, model and task."""
    return Response(json.dumps(await costs.of_run(session, await runs.get(session, run_id))), media_type=JSON)


@router.get("/timeline", summary="Read a run's timeline", response_model=list[Entry], responses=documented(404, 422))
async def read_timeline(run_id: UUID, session: Reading, limit: Limit = 200, skip: Skip = 0) -> Response:
    """Events and comments in the order in which they happened."""
    await runs.get(session, run_id)
    rows = await timeline.of_run(session, run_id, limit=limit, skip=skip)
    return Response(f"[{','.join(rows)}]", media_type=JSON)


@router.get(
    "/checkpoints",
    summary="List a run's checkpoints",
    response_model=list[dict[str, Any]],
    responses=documented(404, 422),
)
async def list_checkpoints(run_id: UUID, session: Reading, limit: Limit = 200, skip: Skip = 0) -> list[dict[str, Any]]:
    """The checkpoints that are kept, newest first."""
    await runs.get(session, run_id)
    return await checkpoints.of_run(session, run_id, limit=limit, skip=skip)


@router.get("/graph", summary="Read a run's graph", response_model=Shape, responses=documented(404, 409, 422))
async def read_graph(run_id: UUID, session: Reading, here: Here) -> dict[str, Any]:
    """Nodes, edges, and where the run stands."""
    run = await runs.get(session, run_id)
    return {
        "graph": run.graph,
        "version": run.graph_version,
        **here.graph_shape(run.graph, run.graph_version),
        "current_node": run.current_node,
        "visits": await checkpoints.visits(session, run_id),
    }


@router.get("/diff", summary="Read what a run changed", response_model=DiffView, responses=documented(404, 409, 422))
async def read_diff(
    run_id: UUID,
    session: Reading,
    here: Here,
    base: Annotated[str | None, Query(pattern=r"^[0-9a-f]{40}$", description="Commit to compare with")] = None,
) -> DiffView:
    """The run's newest commit against a base, or everything that is in it."""
    run = await runs.get(session, run_id)
    commit = await repositories.commit_of(session, run)
    found = await repositories.diff(here.home, run, base, commit)
    files = [DiffFileView(path=f.path, status=f.status, added=f.added, removed=f.removed) for f in found.files]
    return DiffView(base=base, commit=commit, text=found.text, files=files, truncated=found.truncated)


@router.get(
    "/compare/{other_id}", summary="Compare two runs", response_model=Comparison, responses=documented(404, 422)
)
async def compare_runs(run_id: UUID, other_id: UUID, session: Reading, here: Here) -> dict[str, Any]:
    """Cost, time, tasks, findings, tests and gate verdicts of two runs, and the diff of their results."""
    first, second = await runs.get(session, run_id), await runs.get(session, other_id)
    return await comparisons.of_runs(session, first, second, home=here.home)


@router.get(
    "/archive",
    summary="Download a run's repository",
    response_class=Response,
    responses={200: {"content": {"application/zip": {}, "application/gzip": {}}}, **documented(404, 409, 422)},
)
async def read_archive(
    run_id: UUID, session: Reading, here: Here, form: Annotated[Literal["zip", "tar.gz"], Query(alias="format")] = "zip"
) -> Response:
    """The files of the run's newest commit as a zip or tar.gz."""
    run = await runs.get(session, run_id)
    commit = await repositories.commit_of(session, run)
    body = await repositories.archive(here.home, run, commit, form)
    media_type = "application/zip" if form == "zip" else "application/gzip"
    name = f"run-{run.number}-{commit[:12]}.{form}"
    return Response(body, media_type=media_type, headers={"Content-Disposition": f'attachment; filename="{name}"'})
