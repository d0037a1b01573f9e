"""The application: routers, errors, edges, and what lives as long as the process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from backend.api import (
    artifacts,
    budgets,
    comments,
    dead_letters,
    dependencies,
    edge,
    events,
    findings,
    insight,
    problems,
    projects,
    questions,
    runs,
    system,
    tasks,
    templates,
)
from backend.api.installation import Installation
from backend.api.streams import Streams
from backend.api.turns import Turns

ROUTERS = (
    templates.router,
    projects.router,
    budgets.router,
    runs.router,
    insight.router,
    events.router,
    tasks.router,
    comments.router,
    questions.router,
    artifacts.router,
    findings.router,
    dead_letters.router,
    system.router,
)

DESCRIPTION = """An AI software company: projects with a brief, runs that work on them, and everything they decide.

Lists are paged by `limit` and `cursor`. Errors are `application/problem+json`. A POST with an `Idempotency-Key` is done
once. PATCH needs `If-Match`. Money is a string in USD with six decimals, instants are UTC.
"""


def create_app(installation: Installation) -> FastAPI:
    """Build the API over an installation; nothing is opened before it starts."""
    # The pages under /docs load nothing from elsewhere: they work on a machine without internet.
    app = FastAPIOffline(title="The company", version="1", description=DESCRIPTION, lifespan=_life)
    app.state.installation = installation
    app.state.readers = _readers(installation)
    app.state.turns = Turns()
    app.state.streams = Streams(app.state.readers, installation.followers)
    for router in ROUTERS:
        app.include_router(router)
    problems.install(app)
    app.add_exception_handler(dependencies.Repeated, dependencies.answer_again)
    app.add_middleware(edge.BodyLimit)
    app.add_middleware(edge.RequestIds)
    _document_problems(app)
    return app


def _readers(installation: Installation) -> async_sessionmaker[AsyncSession]:
    """Sessions whose every statement stands alone."""
    engine = installation.sessions.kw["bind"]
    assert isinstance(engine, AsyncEngine)
    alone = engine.execution_options(isolation_level="AUTOCOMMIT")
    return async_sessionmaker(alone, expire_on_commit=False)


@contextlib.asynccontextmanager
async def _life(app: FastAPI) -> AsyncIterator[None]:
    installation: Installation = app.state.installation
    loops = [asyncio.ensure_future(loop()) for loop in installation.background]
    try:
        yield
    finally:
        await app.state.streams.close()
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)


def _document_problems(app: FastAPI) -> None:
    """Describe 422 as what it is here, and name the schema that all errors share."""
    make = app.openapi

    def documented() -> dict[str, object]:
        if app.openapi_schema is None:
            schema = make()
            problem = problems.Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas = schema["components"]["schemas"]
            schemas.update(problem.pop("$defs", {}))
            schemas["Problem"] = problem
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = documented  # type: ignore[method-assign]  # FastAPI's documented way to extend the schema
