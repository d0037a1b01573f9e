"""Checkpoint values as JSON text: plain JSON, plus LangGraph's own control types in an explicit form.

An unknown type is an error when it is written, never a silent change and never code when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from math import isfinite
from typing import Any

import orjson
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.types import Command, Interrupt, Overwrite, Send, TimeoutPolicy

from backend.errors import Invalid

TAG = "~"
"""The key that marks a tagged value; a plain dict that has it is stored as its items."""
_SLOW = " "
"""Opens a text that only the standard parser reads exactly."""


class RecordedError(Exception):
    """An exception as it was recorded: its class by name, and its message."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.message = message


def dumps(value: Any, *, where: str) -> str:
    """Return the JSON text of a value; `where` names it in the error for a type that cannot be stored."""
    plain = _encode(value, where)
    try:
        return orjson.dumps(plain).decode()
    except TypeError:
        # Integers beyond 64 bits and lone surrogates, which the fast writer refuses and JSON allows.
        return _SLOW + json.dumps(plain, allow_nan=False, separators=(",", ":"))


def plain_dumps(value: Any, *, where: str) -> str:
    """The same for a value that we made of texts, integers, lists and dicts, which need not be looked through."""
    try:
        text = orjson.dumps(value).decode()
    except TypeError:
        return dumps(value, where=where)
    # A channel may be called like our tag.
    return dumps(value, where=where) if f'"{TAG}"' in text else text


def loads(text: str) -> Any:
    """Return the value of a JSON text that `dumps` made."""
    plain = json.loads(text) if text.startswith(_SLOW) else orjson.loads(text)
    return _decode(plain) if f'"{TAG}"' in text else plain


def _encode(value: Any, where: str) -> Any:
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is float:
        if not isfinite(value):
            raise Invalid(f"{where} holds {value}, which JSON cannot say; store a finite number or null.")
        return value
    if kind is dict:
        return _encode_dict(value, where)
    if kind is list:
        return (
            value
            if _SCALARS.issuperset(map(type, value))
            else [_encode(i, f"{where}/{n}") for n, i in enumerate(value)]
        )
    return _encode_tagged(value, where)


_SCALARS = frozenset({str, int, bool, type(None)})
_TEXT = frozenset({str})


def _encode_dict(value: dict[Any, Any], where: str) -> Any:
    # Most dicts are flat; this looks at all of one without a step of Python for each item.
    if TAG not in value and _TEXT.issuperset(map(type, value)) and _SCALARS.issuperset(map(type, value.values())):
        return value
    plain = {}
    for key, item in value.items():
        if type(key) is not str:
            raise Invalid(f"{where} has the key {key!r}, which is not text; graph state must be plain JSON.")
        plain[key] = item if type(item) in _SCALARS else _encode(item, f"{where}/{key}")
    if TAG in plain:
        return {TAG: "dict", "items": list(map(list, plain.items()))}
    return plain


def _encode_tagged(value: Any, where: str) -> Any:
    def part(item: Any) -> Any:
        return _encode(item, where)

    if isinstance(value, BaseException):
        return {TAG: "error", "kind": type(value).__name__, "message": str(value)}
    if type(value) is tuple:
        return {TAG: "tuple", "items": [part(item) for item in value]}
    fields = _FIELDS.get(type(value))
    if fields is None:
        raise Invalid(
            f"{where} holds a {type(value).__module__}.{type(value).__qualname__}; "
            "graph state must be plain JSON (text, numbers, booleans, null, lists, dicts)."
        )
    tag, names = fields
    return {TAG: tag, **{name: part(getattr(value, name)) for name in names}}


_FIELDS: dict[type, tuple[str, tuple[str, ...]]] = {
    Send: ("send", ("node", "arg", "timeout")),
    Interrupt: ("interrupt", ("value", "id", "response_schema")),
    Command: ("command", ("graph", "update", "resume", "goto")),
    Overwrite: ("overwrite", ("value",)),
    TimeoutPolicy: ("timeout", ("run_timeout", "idle_timeout", "refresh_on")),
    _DeltaSnapshot: ("snapshot", ("value",)),
}


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if TAG not in value:
        return {key: _decode(item) for key, item in value.items()}
    parts = {key: _decode(item) for key, item in value.items() if key != TAG}
    return _MAKERS[value[TAG]](parts)


_MAKERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "dict": lambda parts: dict(parts["items"]),
    "tuple": lambda parts: tuple(parts["items"]),
    "error": lambda parts: RecordedError(parts["kind"], parts["message"]),
    "send": lambda parts: Send(parts["node"], parts["arg"], timeout=parts["timeout"]),
    "interrupt": lambda parts: Interrupt(parts["value"], parts["id"], response_schema=parts["response_schema"]),
    "command": lambda parts: Command(**parts),
    "overwrite": lambda parts: Overwrite(parts["value"]),
    "timeout": lambda parts: TimeoutPolicy(**parts),
    "snapshot": lambda parts: _DeltaSnapshot(parts["value"]),
}
