"""Events over HTTP: live streams of runs, and what types of events there are."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Any, Protocol
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse

from backend.api import words
from backend.api.dependencies import StrictRoute
from backend.api.event_logs import Entry, Place, RunLog, TenantLog
from backend.api.problems import documented
from backend.api.streams import Streams
from backend.api.views import view_model
from backend.domain.event import EVENT_TYPES
from backend.domain.ids import DEFAULT_TENANT
from backend.errors import Fault, Invalid, NotFound
from backend.operations import timeline
from backend.operations.pages import read_cursor

router = APIRouter(prefix="/api", tags=["events"], route_class=StrictRoute)

EventView = view_model("EventView", timeline.VIEW, payload=dict[str, Any])
MAX_SEQ = 2**63 - 1
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Server-sent events: `id` is the run's `seq`, `data` an event; the last one ends the run",
        "content": {
            "text/event-stream": {
                "schema": {"type": "string"},
                "example": 'id: 1\nevent: run.created\ndata: {"seq": 1, "type": "run.created"}\n\n',
            }
        },
    },
    204: {"description": "The run has ended and nothing follows after the given event; do not reconnect"},
}

_ALL = {
    "description": "Server-sent events: `id` is a place to go on from, `data` an event; the stream does not end",
    "content": {
        "text/event-stream": {
            "schema": {"type": "string"},
            "example": 'id: MjAyNi0xMS0y\nevent: run.created\ndata: {"seq": 1, "type": "run.created"}\n\n',
        }
    },
}

Tokens = Annotated[
    bool, Query(description="Also what models say at this moment, of providers with `stream`; sent without an id")
]
After = Annotated[int | None, Query(ge=0, le=MAX_SEQ, description="The last `seq` that was seen")]


@router.get(
    "/runs/{run_id}/events",
    summary="Follow a run",
    response_class=StreamingResponse,
    responses={**_STREAM, **documented(404, 422)},
)
async def follow_run(
    request: Request,
    run_id: UUID,
    after: After = None,
    tokens: Tokens = False,
    last_event_id: Annotated[str | None, Header(description="What a reconnecting client sends by itself")] = None,
) -> Response:
    """Every event of a run after the one that was seen last, then live ones until its end; a comment every 15 s.

    With `tokens`, events of type `tokens` come between them: role, node, task and call, and the `text` that the model
    added to its reply or, with `tool`, to the arguments of a tool call. They are kept nowhere: who comes later or is
    slow misses them, and the reply itself is in the run's calls.
    """
    start = _start(last_event_id, after)
    seen = await RunLog(request.app.state.readers, run_id).look(start)
    if seen is None:
        raise NotFound(f"There is no run {run_id}.")
    if seen.ended and not seen.entries:
        return Response(status_code=204, headers=_HEADERS)
    entries = _entries(request, run_id, start, tokens=tokens)
    return StreamingResponse(_frames(entries), media_type="text/event-stream", headers=_HEADERS)


def _streams(connection: Request | WebSocket) -> Streams:
    streams: Streams = connection.app.state.streams
    return streams


def _entries(
    connection: Request | WebSocket, run_id: UUID, after: int, *, tokens: bool
) -> AsyncIterator[Entry[int] | words.Words | None]:
    streams = _streams(connection)
    if not tokens:
        return streams.follow(run_id, after)
    return words.follow(streams, connection.app.state.installation.followers, run_id, after)


def _start(last_event_id: str | None, after: int | None) -> int:
    if last_event_id is None:
        return after or 0
    text = last_event_id.strip()
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        right = "the `id` of an event of this stream"
        raise Invalid(f"Last-Event-ID holds {right}.", faults=[Fault("/header/Last-Event-ID", right)])
    return int(text)


class _Framed(Protocol):
    @property
    def frame(self) -> bytes: ...


async def _frames(entries: AsyncIterator[_Framed | None]) -> AsyncIterator[bytes]:
    yield b"retry: 2000\n\n"
    async for entry in entries:
        yield entry.frame if entry is not None else b": here\n\n"


@router.websocket("/runs/{run_id}/events/ws")
async def follow_run_by_socket(socket: WebSocket, run_id: UUID, after: After = None, tokens: Tokens = False) -> None:
    """The same stream as a WebSocket: one JSON text an event; closes with 1000 at the end, 4404 for no such run."""
    await socket.accept()
    if await RunLog(socket.app.state.readers, run_id).look(MAX_SEQ) is None:
        await socket.close(4404, "There is no such run.")
        return
    with contextlib.suppress(WebSocketDisconnect):
        async for entry in _entries(socket, run_id, after or 0, tokens=tokens):
            if entry is not None:
                await socket.send_text(entry.data)
        await socket.close(1000)


@router.get(
    "/events",
    summary="Follow everything",
    response_class=StreamingResponse,
    responses={200: _ALL, **documented(422)},
)
async def follow_all(
    request: Request,
    after: Annotated[
        str | None, Query(max_length=200, description="The `id` that was seen last; `now` leaves out what has been")
    ] = None,
    last_event_id: Annotated[str | None, Header(description="What a reconnecting client sends by itself")] = None,
) -> Response:
    """Every event of all runs and projects, the oldest first, then live ones without end; a comment every 15 s.

    An event comes once no older one can be committed any more, which is at once unless a transaction is open.
    """
    log = TenantLog(request.app.state.readers, DEFAULT_TENANT)
    place = await log.now() if last_event_id is None and after == "now" else _place(last_event_id, after)
    entries = _streams(request).follow_tenant(DEFAULT_TENANT, place)
    return StreamingResponse(_frames(entries), media_type="text/event-stream", headers=_HEADERS)


def _place(last_event_id: str | None, after: str | None) -> Place | None:
    given, pointer = (after, "/query/after") if last_event_id is None else (last_event_id, "/header/Last-Event-ID")
    if given is None:
        return None
    try:
        return read_cursor(given.strip())
    except Invalid as error:
        right = "the `id` of an event of this stream, unchanged"
        raise Invalid(f"{pointer.rpartition('/')[2]} takes {right}.", faults=[Fault(pointer, right)]) from error


@router.get("/events/types", summary="List event types", response_model=dict[str, Any])
async def list_event_types() -> dict[str, Any]:
    """The JSON Schema of every event type, by name."""
    envelope = EventView.model_json_schema()
    return {
        name: {**envelope, "title": name, "description": about, "properties": _typed(envelope, name)}
        for name, about in EVENT_TYPES.items()
    }


def _typed(envelope: dict[str, Any], name: str) -> dict[str, Any]:
    return {**envelope["properties"], "type": {"const": name}}
