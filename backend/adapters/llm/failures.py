"""What went wrong with a model call, in the company's terms: which kind, when to try again, what may be billed."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from backend.adapters.llm.wire import Capture, usage_in
from backend.domain.model import CallFailed, FailureKind

_KINDS: dict[int, FailureKind] = {408: "timeout", 409: "conflict", 425: "server_error", 429: "rate_limited"}
_MAYBE_BILLED = frozenset({408, 504, 524})
"""Statuses of something in between that stopped waiting while the model may have gone on."""


def of_status(capture: Capture, *, where: str, now: datetime) -> CallFailed:
    """Return the failure that an HTTP status means."""
    status = capture.status or 0
    body = bytes(capture.body)
    said, code = error_in(body)
    kind = kind_of(status, code)
    if 300 <= status < 400:
        said = f"it redirects to {capture.headers.get('location', 'nowhere')}; set base_url to the final address"
    sentence = f"{where} answered {status}{f': {said}' if said else ''}."
    if code == "insufficient_quota":
        sentence += " The account has no credit left: top it up or configure another provider."
    return CallFailed(
        kind,
        sentence,
        retry_after=retry_after(capture.headers, now),
        billed=usage_in(body),
        may_be_billed=status in _MAYBE_BILLED,
    )


def kind_of(status: int, code: str | None) -> FailureKind:
    """Return the kind of failure of a status, or of an error code that came with a 200."""
    if code == "insufficient_quota":
        return "refused"
    if status in _KINDS:
        return _KINDS[status]
    return "server_error" if status >= 500 else "refused"


def error_in(body: bytes) -> tuple[str, str | None]:
    """Return (message, code) of an error body of the protocol; a short excerpt where it is something else."""
    try:
        parsed: Any = json.loads(body)
    except (ValueError, RecursionError):
        return _short(body.decode("utf-8", "replace")), None
    error = parsed.get("error", parsed) if isinstance(parsed, dict) else parsed
    if not isinstance(error, dict):
        return _short(str(error)), None
    code = error.get("code") or error.get("type")
    return _short(str(error.get("message") or error.get("detail") or "")), str(code) if code is not None else None


def retry_after(headers: dict[str, str], now: datetime) -> float | None:
    """Read `retry-after-ms` or `Retry-After` (seconds or an HTTP date); None where it is absent or makes no sense."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        said = headers.get(name)
        if said is None:
            continue
        try:
            seconds = float(said) * scale
        except ValueError:
            seconds = _until(said, now)
        if math.isfinite(seconds):
            return max(0.0, seconds)
    return None


def _until(said: str, now: datetime) -> float:
    try:
        then = parsedate_to_datetime(said)
    except (TypeError, ValueError):
        return math.nan
    return ((then if then.tzinfo else then.replace(tzinfo=UTC)) - now).total_seconds()


def _short(text: str) -> str:
    line = " ".join(text.split())
    return (line[:300] + "…" if len(line) > 300 else line).rstrip(".")
