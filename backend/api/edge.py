"""What every request passes first: an id, a size limit, a line in the logs, a figure. Plain ASGI: it costs little."""

from __future__ import annotations

import logging
import re
import time
from typing import Any
from uuid import uuid4

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend import logs, metrics
from backend.api import problems

MAX_BODY = 1_048_576
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_log = logging.getLogger("company.http")


class RequestIds:
    """Takes or makes `X-Request-ID`, binds it to the logs, returns it, and logs and counts the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid4().hex
        scope["request_id"] = request_id
        began = time.perf_counter()
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        with logs.bind(request_id=request_id, correlation_id=request_id):
            try:
                await self.app(scope, receive, send_with_id)
            finally:
                if scope["type"] == "http":
                    _tell(scope, status, time.perf_counter() - began)


def _tell(scope: Scope, status: int, seconds: float) -> None:
    route = getattr(scope.get("route"), "path", "unknown")
    metrics.request_answered(scope["method"] if route != "unknown" else "any", route, status, seconds)
    facts: dict[str, Any] = {"method": scope["method"], "route": route, "status": status, "seconds": round(seconds, 4)}
    _log.log(logging.DEBUG if route in {"/healthz", "/readyz", "/metrics"} else logging.INFO, "answered", extra=facts)


class BodyLimit:
    """Refuses bodies of more than a MiB with 413, whether their length is announced or not."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "0")
        if not announced.isdigit() or int(announced[:20]) > MAX_BODY:
            refusal = problems.answer(Request(scope), 413, "too_large", "A body has at most 1 MiB.")
            await refusal(scope, receive, send)
            return
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > MAX_BODY:
                raise HTTPException(413, "A body has at most 1 MiB")
            return message

        await self.app(scope, limited, send)
