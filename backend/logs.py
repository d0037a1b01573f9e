"""JSON logs, one object a line, that carry the ids of what is being worked on.

Any layer logs with `logging.getLogger(__name__)`; the ids come from the context, so that nobody passes them along.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO
from uuid import UUID

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

IDS = ("request_id", "correlation_id", "run_id", "task", "node")
"""The ids that every line carries where they are known."""
CHATTY = (
    "httpx", "httpx2", "httpcore", "httpcore2", "openai", "kombu", "amqp", "asyncio", "alembic.runtime.migration",
    "celery.worker.strategy", "celery.app.trace",
)  # fmt: skip
"""Libraries that are heard from WARNING on; Celery calls a doorbell a success, however the run has ended."""

_bound: ContextVar[dict[str, str] | None] = ContextVar("company_log_ids", default=None)


@contextmanager
def bind(**ids: str | int | UUID | None) -> Iterator[None]:
    """Let every line that is logged inside, also by other coroutines started there, carry these ids.

    Names are those of `IDS`; None leaves an id as it is.
    """
    unknown = set(ids) - set(IDS)
    assert not unknown, f"unknown log ids: {sorted(unknown)}"
    new = {name: str(value) for name, value in ids.items() if value is not None}
    token = _bound.set({**(_bound.get() or {}), **new})
    try:
        yield
    finally:
        _bound.reset(token)


def bind_rest(**ids: str | int | UUID | None) -> None:
    """Bind as `bind` does, for the rest of the coroutine's own context; for code that has no place to unbind."""
    new = {name: str(value) for name, value in ids.items() if value is not None}
    _bound.set({**(_bound.get() or {}), **new})


def bound() -> dict[str, str]:
    """The ids that hold here."""
    return dict(_bound.get() or {})


class _Ids(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        for name, value in (_bound.get() or {}).items():
            if not hasattr(record, name):
                setattr(record, name, value)
        return True


class Lines(JsonFormatter):
    """One line: time in UTC with `Z`, level, logger, message, ids, extras, and the trace of an error."""

    def __init__(self) -> None:
        super().__init__(
            "%(asctime)s %(levelname)s %(name)s %(message)s",
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
            reserved_attrs=[*RESERVED_ATTRS, "color_message"],  # uvicorn's message with escapes for a terminal
        )

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - the library's name
        """The time of the record, whatever the time zone of the machine."""
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def setup(level: str = "INFO", *, stream: TextIO | None = None) -> None:
    """Send all logs of this process to `stream` (standard error) as JSON; calling it again replaces the first call."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Lines())
    handler.addFilter(_Ids())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLevelName(level)))
    for own in ("uvicorn", "uvicorn.error", "celery", "celery.worker"):
        logger = logging.getLogger(own)
        logger.handlers.clear()
        logger.propagate = True
    logging.getLogger("uvicorn.access").disabled = True  # the API logs its own requests, with their ids
