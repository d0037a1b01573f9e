"""Merging patches of run settings, later ones over earlier ones: defaults < template < project < run.

A null takes a field back to its default. Everything that is wrong is found in one go, each with the path of its key.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from backend.domain.config import Patch, RunConfig
from backend.domain.config_faults import faults_of, fields_at, is_map, path_of
from backend.domain.config_rules import broken_rules
from backend.errors import Fault, Invalid

_DEEPEST = 12
_LARGEST = 256 * 1024
_MEMORABLE = 16 * 1024
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def merge(*patches: Patch | str) -> RunConfig:
    """Return the settings that follow from the defaults and these patches; raises `Invalid` naming every wrong key.

    A patch may be the text that the database keeps of it.
    """
    _refuse([fault for patch in patches if not isinstance(patch, str) for fault in _not_json(patch, ())])
    text = f"[{', '.join(one if isinstance(one, str) else json.dumps(one, default=str) for one in patches)}]"
    return _remembered(text) if len(text) <= _MEMORABLE else _merged(text)


def _merged(text: str) -> RunConfig:
    defaults: dict[str, Any] = RunConfig().model_dump(mode="json")
    merged = defaults
    for patch in json.loads(text):
        merged = _over(merged, patch, defaults)
    config = _read(merged)
    _refuse(list(broken_rules(config)))
    return config


# Runs of one template mostly share their settings, and nothing changes them.
_remembered = lru_cache(maxsize=256)(_merged)


def snapshot(config: RunConfig) -> dict[str, Any]:
    """Return the settings as the JSON that a run keeps; money is text, so that not a digit is lost."""
    kept: dict[str, Any] = json.loads(config.json_text)
    return kept


def restore(kept: dict[str, Any]) -> RunConfig:
    """Return the settings that a snapshot holds; raises `Invalid` where this release does not know them any more."""
    return _read(kept)


def _read(merged: dict[str, Any]) -> RunConfig:
    text = json.dumps(merged, allow_nan=False, default=str)
    if len(text) > _LARGEST:
        raise Invalid(f"The settings take {len(text)} bytes; at most {_LARGEST} are kept.")
    try:
        return RunConfig.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise _invalid(faults_of(error)) from error


def _refuse(faults: list[Fault]) -> None:
    if faults:
        raise _invalid(faults)


def _invalid(faults: list[Fault]) -> Invalid:
    shown = " ".join(fault.message for fault in faults[:5])
    more = f" And {len(faults) - 5} more." if len(faults) > 5 else ""
    return Invalid(f"The settings do not fit. {shown}{more}", code="invalid_settings", faults=faults)


def _over(below: dict[str, Any], above: dict[str, Any], defaults: Any, path: tuple[str, ...] = ()) -> dict[str, Any]:
    both = dict(below)
    known = defaults if isinstance(defaults, dict) else {}
    for key, value in above.items():
        beneath = both.get(key)
        if isinstance(value, dict):
            # What is new in a map is merged onto nothing, so that a null inside takes a default there, too.
            under = beneath if isinstance(beneath, dict) else {}
            both[key] = _over(under, value, known.get(key), (*path, key))
        elif value is not None:
            both[key] = value
        elif key in known:
            both[key] = known[key]
        elif is_map(path) or key in fields_at(path, RunConfig):
            both.pop(key, None)
        else:
            both[key] = None  # an unknown key stays, so that it is refused by name
    return both


def _not_json(value: Any, path: tuple[str | int, ...]) -> Iterator[Fault]:
    """Yield what JSON or the database could not hold, with its path, before anything reads it."""
    if len(path) > _DEEPEST:
        yield _fault(path, "is nested too deeply")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str) or _UNSTORABLE.search(key) or len(key) > 200:
                yield _fault(path, "has a key that is no short text")
            else:
                yield from _not_json(item, (*path, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _not_json(item, (*path, index))
    elif (why := _odd(value)) is not None:
        yield _fault(path, why)


def _odd(value: Any) -> str | None:
    if isinstance(value, str):
        return "holds a NUL character or half of a surrogate pair" if _UNSTORABLE.search(value) else None
    if isinstance(value, float | Decimal):
        return None if math.isfinite(value) else "must be a finite number"
    if isinstance(value, int):
        return None if abs(value) < 10**30 else "is absurdly large"
    return None if value is None else f"must be JSON, not {type(value).__name__}"


def _fault(path: tuple[str | int, ...], why: str) -> Fault:
    name, pointer = path_of(path)
    return Fault(pointer, f"{name or 'The patch'} {why}.")
