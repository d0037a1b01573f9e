"""What endpoints are given: a session to read with, or a command whose transaction commits before the answer leaves."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, Header, Query, Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import HTTPConnection

from backend.adapters.db.direct import driver, driver_of
from backend.adapters.db.engine import ring_after_commit, transaction
from backend.api.installation import Installation
from backend.api.turns import Turns
from backend.domain.config import RunConfig
from backend.domain.ids import DEFAULT_TENANT
from backend.domain.ports import Bell
from backend.errors import Conflict, Fault, Invalid
from backend.operations import idempotency
from backend.operations.pages import MAX_LIMIT, MAX_SKIP, Page, PageRequest
from backend.operations.starting import Started

JSON = "application/json"
MAX_NAME = 200


class StrictRequest(Request):
    """A request whose JSON is strict: no NaN, no half surrogates, bounded depth and numbers."""

    async def json(self) -> Any:
        """Parse the body; anything that is not JSON is a `JSONDecodeError`, which is answered with 422."""
        if not hasattr(self, "_json"):
            try:
                self._json = from_json(await self.body(), allow_inf_nan=False)
            except ValueError as error:
                raise json.JSONDecodeError(str(error)[:200], "", 0) from error
        return self._json


class StrictRoute(APIRoute):
    """A route that reads its body strictly."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the request before anything reads it."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return strict


async def installation_of(connection: HTTPConnection) -> Installation:
    """What the application was built on."""
    found: Installation = connection.app.state.installation
    return found


Here = Annotated[Installation, Depends(installation_of)]


async def reading(connection: HTTPConnection) -> AsyncIterator[AsyncSession]:
    """A session that only reads: each statement stands alone, which spares two round trips."""
    async with connection.app.state.readers() as session:
        yield session


Reading = Annotated[AsyncSession, Depends(reading, scope="function")]


class Repeated(Exception):
    """The request was answered before under its `Idempotency-Key`."""

    def __init__(self, answer: idempotency.Answer) -> None:
        super().__init__()
        self.answer = answer


async def answer_again(request: Request, error: Exception) -> Response:
    """Give the answer of the first request once more."""
    assert isinstance(error, Repeated)
    headers = {**error.answer.headers, "Idempotent-Replay": "true"}
    return Response(error.answer.body, error.answer.status, headers=headers, media_type=JSON)


@dataclass(frozen=True, slots=True)
class Command:
    """One change: its transaction commits after the endpoint returns and before the answer leaves."""

    session: AsyncSession
    tenant_id: UUID
    by: str
    request_id: str
    key: str | None = None

    async def answer(self, body: str, status: int = 200, **headers: str) -> Response:
        """The JSON answer, kept under the request's key if it has one."""
        if self.key is not None:
            kept = idempotency.Answer(status, _named(headers), body.encode())
            await idempotency.keep(self.session, self.tenant_id, self.key, kept)
        return shown(body, status, **headers)


async def actor(
    x_actor: Annotated[
        str | None, Header(description="Who acts, as the audit trail names it", examples=["ada"])
    ] = None,
) -> str:
    """Who acts; a claim, until there are keys that prove it."""
    name = (x_actor or "api").strip()
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        right = f"1 to {MAX_NAME} printable characters"
        raise Invalid(f"The name of who acts has {right}.", faults=[Fault("/header/X-Actor", right)])
    return name


By = Annotated[str, Depends(actor)]


def _turn(request: Request) -> AbstractAsyncContextManager[None]:
    """A turn at what the path names, such as a run."""
    turns: Turns = request.app.state.turns
    return turns.turn(next(iter(request.path_params.values()), None))


async def changing(request: Request, here: Here, by: By) -> AsyncIterator[Command]:
    """A command without an idempotency key, for PATCH and DELETE."""
    async with transaction(here.sessions, here.bell, turn=_turn(request)) as session:
        yield Command(session, DEFAULT_TENANT, by, request.scope["request_id"])


Changing = Annotated[Command, Depends(changing, scope="function")]


Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="The same key and body give the same answer again",
        examples=["start-2026-11-21-a"],
    ),
]


@asynccontextmanager
async def _posted(request: Request, here: Installation, by: str, key: str | None) -> AsyncIterator[Command]:
    request_hash = await _hash_of(request) if key is not None else ""
    async with transaction(here.sessions, here.bell, turn=_turn(request)) as session:
        if key is not None:
            again = await idempotency.claim(session, DEFAULT_TENANT, key, request_hash)
            if again is not None:
                raise Repeated(again)
        yield Command(session, DEFAULT_TENANT, by, request.scope["request_id"], key)


async def posting(request: Request, here: Here, by: By, key: Key = None) -> AsyncIterator[Command]:
    """A command that is done once for each `Idempotency-Key`."""
    async with _posted(request, here, by, key) as command:
        yield command


Posting = Annotated[Command, Depends(posting, scope="function")]


@dataclass(frozen=True, slots=True)
class Start:
    """The start of a run: one statement to the driver, which stands alone unless the request has a key."""

    driver: Any
    by: str
    request_id: str
    bell: Bell
    command: Command | None = None

    @property
    def key(self) -> str | None:
        """The request's `Idempotency-Key`, which the run keeps."""
        return self.command.key if self.command is not None else None

    async def answer(self, run: Started) -> Response:
        """Have the workers told, and answer; with a key both wait for the commit."""
        headers = {"Location": f"/api/runs/{run.id}", "ETag": f'"{run.version}"'}
        if self.command is None:
            self.bell.ring(run.id)
            # The doorbell leaves before the answer is made: the run has a longer way to go.
            await asyncio.sleep(0)
            return shown(run.json, 201, **headers)
        ring_after_commit(self.command.session, run.id)
        return await self.command.answer(run.json, 201, **headers)


async def starting(request: Request, here: Here, by: By, key: Key = None) -> AsyncIterator[Start]:
    """The start of a run, done once for each `Idempotency-Key`."""
    if key is None:
        async with _turn(request), driver(here.sessions) as alone:
            yield Start(alone, by, request.scope["request_id"], here.bell)
        return
    async with _posted(request, here, by, key) as command:
        yield Start(await driver_of(command.session), by, command.request_id, here.bell, command)


Starting = Annotated[Start, Depends(starting, scope="function")]


async def _hash_of(request: Request) -> str:
    parts = (request.method, request.url.path, request.url.query)
    return hashlib.sha256("\0".join(parts).encode() + b"\0" + await request.body()).hexdigest()


async def expected_version(
    if_match: Annotated[
        str | None, Header(description='The ETag of what was read, such as `"3"`', examples=['"3"'])
    ] = None,
) -> int:
    """The version that a change was made from."""
    if if_match is None:
        raise Conflict(
            "Send the ETag of what you read as If-Match, so that no edit is lost.", code="precondition_required"
        )
    text = if_match.strip().removeprefix("W/").strip('"')
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        right = 'one ETag as it was sent, such as "3"'
        raise Invalid(f"If-Match holds {right}.", faults=[Fault("/header/If-Match", right)])
    return int(text)


IfMatch = Annotated[int, Depends(expected_version)]


async def page_request(
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Rows of a page")] = 50,
    cursor: Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before")] = None,
    skip: Annotated[int, Query(ge=0, le=MAX_SKIP, description="Rows to leave out; a cursor is faster")] = 0,
    count: Annotated[bool, Query(description="Whether to count all rows that fit")] = False,
) -> PageRequest:
    """Which page of a list is wanted."""
    return PageRequest(limit, cursor, skip, count)


Wanted = Annotated[PageRequest, Depends(page_request)]


def listing(page: Page) -> Response:
    """A page as a response; its JSON was made by the database."""
    return Response(page.json(), media_type=JSON)


def shown(body: str, status: int = 200, **headers: str) -> Response:
    """JSON that the database made, as a response."""
    return Response(body, status, media_type=JSON, headers=_named(headers))


def _named(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


@contextmanager
def settings_in_config() -> Iterator[None]:
    """Let faults of settings point into the body, where they stand under `config`."""
    try:
        yield
    except Invalid as error:
        faults = [
            Fault("/config" + fault.pointer, fault.message)
            if fault.pointer.split("/")[1:2] and fault.pointer.split("/")[1] in RunConfig.model_fields
            else fault
            for fault in error.faults
        ]
        raise Invalid(error.message, code=error.code, faults=faults) from error
