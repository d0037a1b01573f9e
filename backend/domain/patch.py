"""Merging patches of run settings, later ones over earlier ones."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from backend.domain.config import Patch, RunConfig
from backend.errors import Fault, Invalid


def merge(*patches: Patch) -> RunConfig:
    """The settings that follow from the defaults and these patches; raises `Invalid` naming every wrong key."""
    merged: dict[str, Any] = RunConfig().model_dump(mode="json")
    for patch in patches:
        merged = _over(merged, patch)
    try:
        return RunConfig.model_validate(merged)
    except ValidationError as error:
        faults = [Fault("/" + "/".join(map(str, item["loc"])), item["msg"]) for item in error.errors()]
        raise Invalid(
            "The settings do not fit: " + "; ".join(f"{f.pointer} {f.message}" for f in faults), faults=faults
        ) from error


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = dict(below)
    for key, value in above.items():
        if value is None:
            both.pop(key, None)
        elif isinstance(value, dict) and isinstance(both.get(key), dict):
            both[key] = _over(both[key], value)
        else:
            both[key] = value
    return both
