"""The one mapping from conditions to answers: `application/problem+json` (RFC 9457) with JSON pointers.

Inner layers raise conditions of `backend.errors`; what they mean over HTTP is written here and nowhere else. No answer
repeats what was sent, so that no secret comes back.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Any

import asyncpg
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import DBAPIError, SQLAlchemyError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from backend.errors import CompanyError, Conflict, Fault, Forbidden, Invalid, LimitReached, NotFound, Unavailable

MEDIA_TYPE = "application/problem+json"
_log = logging.getLogger(__name__)

STATUSES: dict[type[CompanyError], int] = {
    NotFound: 404,
    Conflict: 409,
    Invalid: 422,
    Forbidden: 403,
    LimitReached: 429,
    Unavailable: 503,
}
_BY_CODE = {"version_conflict": 412, "precondition_required": 428}
_PASSING = {"08", "28", "3D", "40", "53", "55", "57"}
"""Classes of errors that say nothing of what was asked: the connection, the server, others who are at work."""
_TOO_SLOW = {"25P03", "25P04"}
"""The server ended a transaction in which this process was silent for too long."""
_NOT_THERE = {"42703", "42P01", "42883"}
"""A column, table or function that this release knows and the database does not, or no longer."""
_LISTED = {400, 403, 404, 405, 406, 409, 412, 413, 415, 422, 428, 429, 500, 503}


class FaultView(BaseModel):
    """One thing wrong with a request."""

    pointer: str = Field(description="JSON pointer into the body, or /query/…, /path/…, /header/…")
    message: str = Field(description="What would be right")


class Problem(BaseModel):
    """What went wrong and what to do about it."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "type": "urn:company:problem:conflict",
                "title": "Conflict",
                "status": 409,
                "detail": "Run 3 has ended as COMPLETED; it cannot be paused.",
                "instance": "/api/runs/0199a1b2-0000-7000-8000-000000000003/pause",
                "code": "conflict",
                "errors": [],
                "request_id": "5f0c1f2e7a",
            }
        }
    )
    type: str = Field(description="A name for this kind of problem that never changes")
    title: str = Field(description="The status in words")
    status: int = Field(description="The HTTP status")
    detail: str = Field(description="One sentence: what is wrong and what to do")
    instance: str = Field(description="The path that was asked for")
    code: str = Field(description="The kind of problem, for programs")
    errors: list[FaultView] = Field(description="Every wrong place of the request")
    request_id: str = Field(description="Found in the logs and events of this request")


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error answers of an operation, for its documentation."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in sorted(statuses)}


def answer(
    request: Request, status: int, code: str, detail: str, faults: Sequence[Fault] = (), headers: Any = None
) -> Response:
    """A problem as a response; also used where no exception can be raised."""
    request_id = str(request.scope.get("request_id", ""))
    body = {
        "type": f"urn:company:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "instance": request.scope.get("path", ""),
        "code": code,
        "errors": [{"pointer": fault.pointer, "message": fault.message} for fault in faults],
        "request_id": request_id,
    }
    extra = dict(headers or {})
    if status in {429, 503}:
        extra.setdefault("Retry-After", "1")
    return Response(json.dumps(body), status, media_type=MEDIA_TYPE, headers={**extra, "X-Request-ID": request_id})


def install(app: FastAPI) -> None:
    """Let every error of `app` be answered as a problem."""
    app.add_exception_handler(CompanyError, _condition)
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(SQLAlchemyError, _database)
    app.add_exception_handler(asyncpg.PostgresError, _database)
    app.add_exception_handler(OSError, _away)
    app.add_exception_handler(TimeoutError, _away)
    for kind in (asyncpg.InterfaceError, asyncpg.InternalClientError):
        app.add_exception_handler(kind, _away)
    app.add_exception_handler(Exception, _unexpected)


async def _condition(request: Request, error: Exception) -> Response:
    assert isinstance(error, CompanyError)
    status = _BY_CODE.get(error.code) or next(
        (number for kind, number in STATUSES.items() if isinstance(error, kind)), 500
    )
    faults = error.faults if isinstance(error, Invalid) else ()
    return answer(request, status, error.code, error.message, faults)


async def _not_valid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = list(_faults(error.errors()))
    where = ", ".join(dict.fromkeys(fault.pointer or "the body" for fault in faults[:5]))
    return answer(request, 422, "invalid", f"The request does not fit at {where}.", faults[:100])


def _faults(errors: Sequence[Any]) -> Iterator[Fault]:
    for error in errors:
        place, *path = [str(part) for part in error["loc"]]
        if error["type"] == "json_invalid":
            yield Fault("", "must be JSON: " + str(error.get("ctx", {}).get("error", "it could not be read")))
            continue
        steps = path if place == "body" else [place, *path]
        pointer = "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in steps)
        said = "There is no such field; /docs lists them" if error["type"] == "extra_forbidden" else str(error["msg"])
        yield Fault(pointer[:300], said[:500])


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_").replace("-", "_")
    detail = f"There is nothing at {request.method} {request.scope['path']}." if error.status_code == 404 else None
    return answer(request, error.status_code, code, detail or f"{error.detail}.".replace("..", "."), (), error.headers)


async def _database(request: Request, error: Exception) -> Response:
    """Refusals of the database by their class: data 422, integrity 409, everything that passes 503."""
    original = getattr(error, "orig", error)
    if isinstance(error, StatementError) and isinstance(original, CompanyError):
        return await _condition(request, original)
    state = str(getattr(original, "sqlstate", None) or "")
    passing = state[:2] in _PASSING or state in _TOO_SLOW
    if isinstance(error, PoolTimeout) or passing or _is_disconnect(error):
        _log.warning("The database did not answer: %s", type(original).__name__)
        return answer(request, 503, "unavailable", "The database is away or busy; ask again in a moment.")
    if state in _NOT_THERE:
        _log.error("The database is not that of this release.", exc_info=error)
        detail = "The database is not that of this release: run `company migrate`, and see /readyz."
        return answer(request, 503, "database_not_migrated", detail)
    if state.startswith("22"):
        return answer(request, 422, "invalid", "A value is outside what can be kept.")
    if state.startswith("23"):
        return answer(request, 409, "conflict", "The change does not fit what is there; read it again.")
    return await _unexpected(request, error)


def _is_disconnect(error: Exception) -> bool:
    return isinstance(error, DBAPIError) and error.connection_invalidated


async def _away(request: Request, error: Exception) -> Response:
    _log.warning("Something that is needed is away: %s", type(error).__name__)
    return answer(request, 503, "unavailable", "Something that is needed is away; ask again in a moment.")


async def _unexpected(request: Request, error: Exception) -> Response:
    _log.error("The request failed unexpectedly.", exc_info=error)
    return answer(request, 500, "error", "Something went wrong here; the logs tell what under this request id.")
