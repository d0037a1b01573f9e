"""The HTTP side of a model call: one bounded client a process, and the reading of bodies whatever parses them later.

What a provider billed is read from the bytes that came over the wire, so that it is metered even when the reply is cut,
is no JSON or does not fit the protocol.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import AsyncIterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import httpx2

from backend.domain.model import Usage

LARGEST_REPLY = 16 * 1024 * 1024
_LARGEST_COUNT = 100_000_000


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


class BoundedClient(httpx2.AsyncClient):
    """An HTTP client that keeps a copy of each body for the task's capture, and cuts a body that is too large.

    Redirects are not followed: a key goes to the address that it was configured for and nowhere else.
    """

    def __init__(self, **options: Any) -> None:
        limits = httpx2.Limits(max_connections=1000, max_keepalive_connections=50)
        super().__init__(follow_redirects=False, limits=limits, **options)
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
        response = await super().send(request, stream=True, **options)
        capture.status = response.status_code
        capture.headers = {name.lower(): value for name, value in response.headers.items()}
        packed = response.headers.pop("content-encoding", "identity").lower()
        inner = response.stream
        assert isinstance(inner, httpx2.AsyncByteStream)
        response.stream = _Copied(inner, capture, packed=packed)
        if not stream:
            try:
                await response.aread()
            except BaseException:
                await response.aclose()
                raise
        return response


def _sent_marker(capture: Capture) -> Any:
    async def trace(event: str, _info: dict[str, Any]) -> None:
        if event.endswith("send_request_headers.started"):
            capture.sent = True

    return trace


class _Copied(httpx2.AsyncByteStream):
    def __init__(self, inner: httpx2.AsyncByteStream, capture: Capture, *, packed: str) -> None:
        self._inner = inner
        self._capture = capture
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
        await self._inner.aclose()


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
