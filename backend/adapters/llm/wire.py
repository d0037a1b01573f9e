"""The HTTP side of a model call: one bounded client a process, and the reading of bodies whatever parses them later.

What a provider billed is read from the bytes that came over the wire, so that it is metered even when the reply is cut,
is no JSON or does not fit the protocol.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import httpx2

from backend.domain.model import Usage

LARGEST_REPLY = 16 * 1024 * 1024
_LARGEST_COUNT = 100_000_000
_ROOM = 16
"""Calls that a lane has room for."""
_LANES = 64
"""More calls than all of them have room for wait for a connection, as long as they would for an answer."""


class TooLarge(Exception):
    """A reply passed the largest size that is read."""


@dataclass(slots=True)
class Capture:
    """What one call sent and got back, byte for byte; filled by the client while the call is on its way."""

    limit: int = LARGEST_REPLY
    sent: bool = False
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    complete: bool = False


capturing: ContextVar[Capture | None] = ContextVar("capturing", default=None)
"""The capture of the call that this task makes."""


@dataclass(eq=False, slots=True)
class _Lane:
    """A pool of connections of its own, and the requests that are on their way over it."""

    client: httpx2.AsyncClient
    busy: int = 0


class BoundedClient(httpx2.AsyncClient):
    """An HTTP client that keeps a copy of each body for the task's capture, and cuts a body that is too large.

    Redirects are not followed: a key goes to the address that it was configured for and nowhere else. Calls go over
    lanes, the first that has room: a pool looks at all of its connections for each request and each answer, so that one
    for hundreds of calls spends a sixth of the processor time of a worker that waits for models.
    """

    def __init__(self) -> None:
        self._tls = httpx2.create_ssl_context()
        self._lanes: list[_Lane] = []
        super().__init__(follow_redirects=False, verify=self._tls)
        # Compressed bodies could hide a bomb behind a small size; they are asked for plain and unpacked boundedly.
        self.headers["Accept-Encoding"] = "identity"

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send as the client always does, and hang the capture onto the body."""
        capture = capturing.get()
        if capture is None:
            return await super().send(request, **options)
        stream = options.pop("stream", False)
        options["follow_redirects"] = False
        request.extensions = {**request.extensions, "trace": _sent_marker(capture)}
        lane = self._enter()
        try:
            response = await lane.client.send(request, stream=True, **options)
        except BaseException:
            await self._leave(lane)
            raise
        capture.status = response.status_code
        capture.headers = {name.lower(): value for name, value in response.headers.items()}
        packed = response.headers.pop("content-encoding", "identity").lower()
        inner = response.stream
        assert isinstance(inner, httpx2.AsyncByteStream)
        response.stream = _Copied(inner, capture, packed=packed, closed=lambda: self._leave(lane))
        if not stream:
            try:
                await response.aread()
            except BaseException:
                await response.aclose()
                raise
        return response

    async def aclose(self) -> None:
        """Close the connections of all lanes."""
        for lane in self._lanes:
            await lane.client.aclose()
        await super().aclose()

    @property
    def lanes(self) -> tuple[int, ...]:
        """How many calls are on their way over each lane."""
        return tuple(lane.busy for lane in self._lanes)

    def _enter(self) -> _Lane:
        lane = next((lane for lane in self._lanes if lane.busy < _ROOM), None)
        if lane is None and len(self._lanes) < _LANES:
            limits = httpx2.Limits(max_connections=_ROOM, max_keepalive_connections=_ROOM)
            lane = _Lane(httpx2.AsyncClient(follow_redirects=False, verify=self._tls, limits=limits))
            self._lanes.append(lane)
        lane = lane or min(self._lanes, key=attrgetter("busy"))
        lane.busy += 1
        return lane

    async def _leave(self, lane: _Lane) -> None:
        """Count a request out; a last lane that is no longer needed goes, or its idle connections stayed open."""
        lane.busy -= 1
        while len(self._lanes) > 1 and self._lanes[-1].busy == 0 and 2 * self._lanes[-2].busy <= _ROOM:
            await self._lanes.pop().client.aclose()


def _sent_marker(capture: Capture) -> Any:
    async def trace(event: str, _info: dict[str, Any]) -> None:
        if event.endswith("send_request_headers.started"):
            capture.sent = True

    return trace


class _Copied(httpx2.AsyncByteStream):
    def __init__(
        self, inner: httpx2.AsyncByteStream, capture: Capture, *, packed: str, closed: Callable[[], Awaitable[None]]
    ) -> None:
        self._inner = inner
        self._capture = capture
        self._closed: Callable[[], Awaitable[None]] | None = closed
        self._unpack = None if packed == "identity" else zlib.decompressobj(wbits=47)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        body = self._capture.body
        async for block in self._inner:
            plain = block if self._unpack is None else self._unpack.decompress(block, self._capture.limit + 1)
            if len(body) + len(plain) > self._capture.limit:
                raise TooLarge
            body += plain
            yield plain
        self._capture.complete = True

    async def aclose(self) -> None:
        closed, self._closed = self._closed, None
        try:
            await self._inner.aclose()
        finally:
            if closed is not None:
                await closed()


def usage_in(raw: bytes) -> Usage | None:
    """Find what was billed in a body, even one that is cut or broken; None where it does not say so sensibly."""
    text = raw.decode("utf-8", "replace")
    found = None
    for hit in re.finditer(r'(?<!\\)"usage"\s*:\s*(?=\{)', text):
        try:
            said, _ = json.JSONDecoder().raw_decode(text, hit.end())
        except (ValueError, RecursionError):
            continue
        found = usage_from(said) or found
    return found


def usage_from(said: Any) -> Usage | None:
    """Read a usage object of the protocol; None where counts are missing, negative or absurd."""
    if not isinstance(said, dict):
        return None
    prompt, completion = _count(said.get("prompt_tokens")), _count(said.get("completion_tokens"))
    if prompt is None or completion is None:
        return None
    details = said.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else None
    return Usage(input_tokens=prompt, output_tokens=completion, cached_tokens=min(cached or 0, prompt))


def _count(said: Any) -> int | None:
    if isinstance(said, bool) or not isinstance(said, int | float) or not 0 <= said <= _LARGEST_COUNT:
        return None
    return int(said) if said == int(said) else None  # some servers count in floats
