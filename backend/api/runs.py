"""Runs over HTTP: read them and steer them."""

from __future__ import annotations

from decimal import Decimal
from functools import partial
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from backend.adapters.db.tables import ProjectRun
from backend.api.dependencies import (
    Command,
    Here,
    Posting,
    Reading,
    StrictRoute,
    Wanted,
    listing,
    settings_in_config,
    shown,
)
from backend.api.problems import documented
from backend.api.views import PageOf, view_model
from backend.domain.run import Request, RunStatus
from backend.operations import forks, repositories, runs

router = APIRouter(prefix="/api/runs", tags=["runs"], route_class=StrictRoute)

_WORDS = {"status": RunStatus, "requested": Request}


class Range(BaseModel):
    """Where spend will stand when the run is done, in one unit; money as text."""

    spent: str | int
    low: str | int
    high: str | int
    limit: str | int | None
    reaches_limit: Literal["no", "possible", "expected"]


class Forecast(BaseModel):
    """What a run will have spent when it is done, from its progress, its spend and its tasks."""

    usd: Range
    tokens: Range
    seconds: Range
    computed: str = Field(description="How the ranges were computed, in a sentence")


RunView = view_model(
    "RunView",
    runs.VIEW,
    **_WORDS,
    config_snapshot=dict[str, Any],
    prompts=dict[str, str],
    final_report=dict[str, Any],
    forecast=Annotated[
        Forecast | None, Field(description="What it will have spent when it is done; null: nothing can be said")
    ],
)
RunListed = view_model("RunListed", runs.LISTED, **_WORDS)


class NewLimits(BaseModel):
    """New limits of a run that is retried, in all, not on top; what is left out stays."""

    model_config = ConfigDict(extra="forbid")
    tokens: Annotated[int, Field(ge=1, le=10_000_000_000, examples=[200_000])] | None = None
    usd: Annotated[Decimal, Field(gt=0, le=1_000_000, max_digits=14, decimal_places=6, examples=["5.00"])] | None = None
    seconds: Annotated[int, Field(ge=1, le=2_592_000, examples=[3600])] | None = None


class RunPause(BaseModel):
    """When a run is to hold."""

    model_config = ConfigDict(extra="forbid")
    at_once: bool = Field(
        default=False,
        description="Before the next model call instead of at the next node edge; commands on their way are cut",
        examples=[True],
    )


class RunRetry(BaseModel):
    """How a run is retried."""

    model_config = ConfigDict(extra="forbid")
    budget: NewLimits = NewLimits()


class RunFork(BaseModel):
    """From where a run is forked, and what is to be different."""

    model_config = ConfigDict(extra="forbid")
    checkpoint_id: UUID | None = Field(
        default=None, description="The newest with something left to do where none is given"
    )
    config: dict[str, Any] = Field(
        default_factory=dict,
        description="What differs from the settings of the run",
        examples=[{"budget": {"usd": "5.00"}, "security": {"gate": "warn"}}],
    )


@router.get("", response_model=PageOf[RunListed], summary="List runs", responses=documented(422))  # type: ignore[valid-type]  # made from the table
async def list_runs(
    session: Reading,
    wanted: Wanted,
    project_id: UUID | None = None,
    status: RunStatus | None = None,
    since: AwareDatetime | None = None,
) -> Response:
    """Runs, newest first."""
    return listing(await runs.page(session, wanted, project_id=project_id, status=status, since=since))


@router.get("/{run_id}", response_model=RunView, summary="Read a run", responses=documented(404, 422))
async def read_run(run_id: UUID, session: Reading) -> Response:
    """One run: status, limits, totals, settings, report."""
    run = await runs.get(session, run_id)
    return shown(await runs.VIEW.one(session, ProjectRun.id == run_id), ETag=f'"{run.version}"')


@router.post("/{run_id}/pause", response_model=RunView, summary="Pause a run", responses=documented(404, 409, 422))
async def pause_run(run_id: UUID, command: Posting, body: RunPause | None = None) -> Response:
    """Ask a run to hold at its next node edge, or at once; nothing is paid twice when it goes on.

    Asking twice is the same as asking once; at once makes more of a pause that was asked for before.
    """
    run = await runs.pause(command.session, run_id, by=command.by, at_once=body is not None and body.at_once)
    return await _answer(command, run)


@router.post("/{run_id}/resume", response_model=RunView, summary="Resume a run", responses=documented(404, 409, 422))
async def resume_run(run_id: UUID, command: Posting) -> Response:
    """Let a paused run go on, or take back a pause that was asked for."""
    run = await runs.resume(command.session, run_id, by=command.by)
    return await _answer(command, run)


@router.post("/{run_id}/stop", response_model=RunView, summary="Stop a run", responses=documented(404, 409, 422))
async def stop_run(run_id: UUID, command: Posting) -> Response:
    """End a run: at once where no worker holds it, else within seconds."""
    run = await runs.stop(command.session, run_id, by=command.by)
    return await _answer(command, run)


@router.post("/{run_id}/retry", response_model=RunView, summary="Retry a run", responses=documented(404, 409, 422))
async def retry_run(run_id: UUID, command: Posting, body: RunRetry | None = None) -> Response:
    """Let a run that failed or was stopped go on from its last checkpoint, with higher limits if some are given."""
    budget = body.budget if body is not None else NewLimits()
    limits = runs.Limits(budget.tokens, budget.usd, budget.seconds)
    run = await runs.retry(command.session, run_id, by=command.by, limits=limits)
    return await _answer(command, run)


@router.post(
    "/{run_id}/fork",
    status_code=201,
    response_model=RunView,
    summary="Fork a run",
    responses=documented(404, 409, 422, 503),
)
async def fork_run(run_id: UUID, command: Posting, here: Here, body: RunFork | None = None) -> Response:
    """Begin another run of the project from a checkpoint of this one; nothing before it is done or paid again."""
    asked = body or RunFork()
    place = forks.Place(here.graph_shape, here.faults, partial(repositories.branch_at, here.home))
    with settings_in_config():
        run = await forks.fork(
            command.session,
            run_id,
            checkpoint_id=asked.checkpoint_id,
            patch=asked.config,
            place=place,
            by=command.by,
            correlation_id=command.request_id,
        )
    row = await runs.VIEW.one(command.session, ProjectRun.id == run.id)
    return await command.answer(row, 201, Location=f"/api/runs/{run.id}", ETag=f'"{run.version}"')


async def _answer(command: Command, run: ProjectRun) -> Response:
    row = await runs.VIEW.one(command.session, ProjectRun.id == run.id)
    return await command.answer(row, ETag=f'"{run.version}"')
