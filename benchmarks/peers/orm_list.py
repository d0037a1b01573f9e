"""The usual way to list rows: FastAPI, an ORM session a request, `response_model`, pages by offset."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import uvicorn
from fastapi import Depends, FastAPI
from pydantic import BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from backend.adapters.db.engine import asyncpg_url
from backend.adapters.db.tables import ProjectRun
from backend.domain.ids import DEFAULT_TENANT

app = FastAPI()
engine = create_async_engine(asyncpg_url(os.environ["DATABASE_URL"]), pool_size=10)
sessions = async_sessionmaker(engine, expire_on_commit=False)


class RunOut(BaseModel):
    """The columns that the company's list shows."""

    model_config = ConfigDict(from_attributes=True)
    id: UUID
    project_id: UUID
    number: int
    status: str
    requested: str
    graph: str
    graph_version: str
    template_slug: str
    template_version: int
    limit_tokens: int | None
    limit_usd: Decimal | None
    limit_seconds: int | None
    spent_tokens_input: int
    spent_tokens_output: int
    spent_tokens_cached: int
    spent_usd: Decimal
    spent_seconds: Decimal
    reserved_tokens: int
    reserved_usd: Decimal
    model_calls: int
    current_node: str | None
    progress: int
    lease_owner: str | None
    lease_epoch: int
    lease_expires_at: datetime | None
    claims: int
    event_seq: int
    head_checkpoint_id: UUID | None
    stop_reason: str | None
    error: str | None
    parent_run_id: UUID | None
    parent_checkpoint_id: str | None
    correlation_id: str
    started_by: str
    version: int
    queued_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    created_at: datetime
    updated_at: datetime


class RunPage(BaseModel):
    """A page."""

    items: list[RunOut]


async def session() -> AsyncIterator[AsyncSession]:
    async with sessions() as opened:
        yield opened


@app.get("/runs", response_model=RunPage)
async def runs(opened: Annotated[AsyncSession, Depends(session)], limit: int = 50, skip: int = 0) -> Any:
    # By the tenant, as the company asks too: both go by the same index.
    newest = select(ProjectRun).where(ProjectRun.tenant_id == DEFAULT_TENANT)
    newest = newest.order_by(ProjectRun.created_at.desc(), ProjectRun.id.desc())
    return {"items": (await opened.scalars(newest.limit(limit).offset(skip))).all()}


@app.get("/healthz")
def healthz() -> dict[str, bool]:
    return {"up": True}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PEER_PORT"]), log_level="warning", access_log=False)
