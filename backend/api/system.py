"""The installation over HTTP: is it alive, is it ready, how are its parts, what does it count."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from backend import metrics
from backend.api.dependencies import Here, Reading
from backend.api.problems import documented
from backend.errors import Unavailable
from backend.operations import system

router = APIRouter(tags=["system"])


class PartView(BaseModel):
    """How one part is."""

    name: str = Field(examples=["database"])
    status: Literal["ok", "warn", "fail"]
    sentence: str = Field(examples=["PostgreSQL 18.1 answers; the schema is at its newest revision."])
    advice: str | None = None


class Health(BaseModel):
    """How all parts are; `fail` when one fails."""

    status: Literal["ok", "warn", "fail"]
    parts: list[PartView]
    workers: list[str] = Field(description="Workers that live")


class Alive(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


@router.get("/healthz", summary="Is the process alive", response_model=Alive)
async def healthz() -> Alive:
    """Answers as long as the process does, whatever else is away."""
    return Alive()


@router.get("/readyz", summary="Can the API work", response_model=Alive, responses=documented(503))
async def readyz(here: Here) -> Alive:
    """Whether the database answers and is migrated, and the files can be written; 503 with the reason if not."""
    failed = [part for part in await here.readiness() if part.status == "fail"]
    if failed:
        told = " ".join(f"{part.sentence} {part.advice or ''}".rstrip() for part in failed)
        raise Unavailable(told, code="not_ready")
    return Alive()


@router.get("/metrics", summary="Figures for Prometheus", response_class=Response)
async def read_metrics(here: Here, request: Request) -> Response:
    """This process, every living worker (label `worker`), and what the database knows; without it, the rest."""
    async with request.app.state.readers() as session:
        gauges = await system.gauges(session)
    return Response(metrics.merge(await here.workers(), gauges), media_type=metrics.CONTENT_TYPE)


@router.get("/api/system", summary="The company at a glance", response_model=dict[str, Any], responses=documented(503))
async def read_overview(session: Reading, here: Here) -> dict[str, Any]:
    """Counts by status, the queue, leases, what waits for people, what was spent, and which workers live."""
    return {**await system.overview(session), "workers": sorted(await here.workers())}


@router.get("/api/system/health", summary="Health in parts", response_model=Health)
async def read_health(here: Here) -> Health:
    """Every part with a sentence and what to do; always 200, so that a dashboard can show it."""
    parts = [PartView.model_validate(part, from_attributes=True) for part in await here.health()]
    words = {part.status for part in parts}
    status: Literal["ok", "warn", "fail"] = "fail" if "fail" in words else "warn" if "warn" in words else "ok"
    return Health(status=status, parts=parts, workers=sorted(await here.workers()))
