"""Budgets over HTTP: limits of a project in all and of the tenant's month."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from backend.api.dependencies import Changing, Reading, StrictRoute, shown
from backend.api.problems import documented
from backend.operations import budgets

router = APIRouter(prefix="/api", tags=["budgets"], route_class=StrictRoute)


class BudgetLimits(BaseModel):
    """Limits in all, what is spent already included; what is left out or null is unlimited."""

    model_config = ConfigDict(extra="forbid")
    tokens: Annotated[int, Field(ge=1, le=10_000_000_000, examples=[2_000_000])] | None = None
    usd: Annotated[Decimal, Field(gt=0, le=1_000_000, max_digits=14, decimal_places=6, examples=["50.00"])] | None = (
        None
    )
    seconds: (
        Annotated[
            int,
            Field(
                ge=1, le=50_000_000, examples=[36_000], description="Of work, the time that runs are driven by a worker"
            ),
        ]
        | None
    ) = None

    def wanted(self) -> budgets.Limits:
        """As the operation takes them."""
        return budgets.Limits(self.tokens, self.usd, self.seconds)


class BudgetView(BaseModel):
    """Limits with what is spent and what calls in flight and runs that work hold.

    Money and seconds that are spent or held have six decimals; null spend: never limited.
    """

    scope: str = Field(examples=["project"])
    name: str | None = Field(description="`all`, or the month as 2026-11; null where no limit was ever set")
    limits: dict[str, Any]
    spent: dict[str, Any] | None
    held: dict[str, Any] | None


@router.get(
    "/projects/{project_id}/budget",
    response_model=BudgetView,
    summary="Read a project's budget",
    responses=documented(404, 422),
)
async def read_project_budget(project_id: UUID, session: Reading) -> Response:
    """What all runs of the project may spend, have spent and hold."""
    return shown(json.dumps(await budgets.of_project(session, project_id)))


@router.put(
    "/projects/{project_id}/budget",
    response_model=BudgetView,
    summary="Limit a project",
    responses=documented(404, 409, 422),
)
async def limit_project(project_id: UUID, body: BudgetLimits, command: Changing) -> Response:
    """Set what all runs of the project may spend together; counts from the next model call on."""
    return shown(json.dumps(await budgets.limit_project(command.session, project_id, body.wanted())))


@router.get("/budget", response_model=BudgetView, summary="Read the month's budget")
async def read_month_budget(session: Reading) -> Response:
    """What all runs may spend in this calendar month (UTC), have spent and hold."""
    return shown(json.dumps(await budgets.of_month(session)))


@router.put("/budget", response_model=BudgetView, summary="Limit the month", responses=documented(409, 422))
async def limit_month(body: BudgetLimits, command: Changing) -> Response:
    """Set what all runs may spend in this calendar month and in each that follows; counts from the next call on."""
    return shown(json.dumps(await budgets.limit_month(command.session, body.wanted())))
