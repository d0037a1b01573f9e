"""What is wrong with settings, in sentences that name the key and say what would be right."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from backend.domain.config import RunConfig
from backend.errors import Fault

Path = Sequence[str | int]


def faults_of(error: ValidationError, model: type[BaseModel] = RunConfig) -> list[Fault]:
    """Return the faults that a validation error of `model` names, in the order of the settings."""
    return [_fault(wrong, model) for wrong in error.errors(include_url=False)]


def path_of(path: Path) -> tuple[str, str]:
    """Return a path as people write it (`budget.usd`) and as a JSON pointer (`/budget/usd`)."""
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    pointer = "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)
    return name, pointer


def fields_at(path: Path, model: type[BaseModel]) -> list[str]:
    """Return the settings that there are at a path, through maps and optional sections."""
    found = next(_models(_kind_at(path, model)), None)
    return list(found.model_fields) if found is not None else []


def is_map(path: Path, model: type[BaseModel] = RunConfig) -> bool:
    """Whether the keys at a path are names that people choose."""
    return get_origin(_kind_at(path, model)) is dict


def suggestion(word: str, known: Sequence[str]) -> str:
    """Return `did you mean …?` for a word that is nearly right, else the list of what there is."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]}?"
    listed = ", ".join(known[:20])
    return f"there are: {listed}." if listed else "there is nothing to set."


def _fault(wrong: Mapping[str, Any], model: type[BaseModel]) -> Fault:
    path = [part for part in wrong["loc"] if part != "[key]"]
    name, pointer = path_of(path)
    kind, context, value = wrong["type"], wrong.get("ctx", {}), wrong.get("input")
    if kind == "extra_forbidden":
        return Fault(pointer, _unknown(path, model))
    shown = isinstance(value, str | int | float) and (not path or path[-1] not in _NEVER_SHOWN)
    said = f" (not {_quoted(value)})" if shown else ""
    demand = _demand(kind, context, value, path)
    end = "" if demand.endswith("?") else f"{said}."
    return Fault(pointer, f"{name or 'The settings'} {demand}{end}")


def _unknown(path: Path, model: type[BaseModel]) -> str:
    *above, key = path
    where = path_of(above)[0]
    known = fields_at(above, model)
    near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.6)
    elsewhere = [] if near else [path_of(found)[0] for found in _named(str(key), model)]
    hint = f"did you mean {elsewhere[0]}?" if elsewhere else suggestion(str(key), known)
    return f"There is no setting {key} in {where}; {hint}" if where else f"There is no setting {key}; {hint}"


def _demand(kind: str, context: Mapping[str, Any], value: Any, path: Path) -> str:
    """Say what a value must be."""
    if kind in _BOUNDS:
        return f"must be {_BOUNDS[kind]} {context[_BOUND_OF[kind]]}"
    if kind in ("enum", "literal_error"):
        listed = str(context["expected"]).replace("'", "")
        near = difflib.get_close_matches(str(value), re.split(r", | or ", listed), n=1, cutoff=0.6)
        return f"must be one of {listed}" + (f"; did you mean {near[0]}?" if near else "")
    if kind in ("string_too_short", "string_too_long", "too_long"):
        least, most = context.get("min_length"), context.get("max_length")
        return f"must have at least {least} characters" if least else f"must have at most {most} characters"
    if kind == "string_pattern_mismatch":
        return _PATTERNS.get(str(path[-1]), "may hold only letters, digits and . _ - / : @ +, without spaces")
    if kind == "decimal_max_digits":
        return "is absurdly large or too finely divided"
    if kind == "decimal_max_places":
        return f"may have at most {context['decimal_places']} decimal places"
    return _TYPES.get(kind, "is not right").format(unit=_unit(path), example=_example(path))


_NEVER_SHOWN = frozenset({"key_variable", "base_url", "remote"})
"""People paste keys and passwords into these."""

_BOUNDS = {
    "greater_than": "more than",
    "greater_than_equal": "at least",
    "less_than": "less than",
    "less_than_equal": "at most",
}
_BOUND_OF = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}

_TYPES = {
    "int_type": "must be a whole number{unit}{example}",
    "int_parsing": "must be a whole number{unit}{example}",
    "float_type": "must be a number{unit}{example}",
    "decimal_type": "must be a number{unit}{example}",
    "decimal_parsing": "must be a number{unit}{example}",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "model_type": "must be an object of settings",
    "model_attributes_type": "must be an object of settings",
    "dict_type": "must be an object",
    "tuple_type": "must be a list",
    "missing": "is missing",
}

_PATTERNS = {
    "base_url": "must be an address that begins with http:// or https://",
    "key_variable": "must name an environment variable that ends in _KEY or _TOKEN, such as OPENAI_API_KEY",
    "branch": "must be the name of a git branch",
}


def _unit(path: Path) -> str:
    name = str(next((part for part in reversed(path) if isinstance(part, str)), ""))
    if name.endswith("seconds"):
        return " of seconds"
    if name.endswith("_mb"):
        return " of megabytes"
    return {"usd": " of US dollars", "tokens": " of tokens"}.get(name, "")


def _example(path: Path) -> str:
    name = str(path[-1]) if path else ""
    if name.endswith("seconds"):
        return ", such as 3600 for an hour"
    return {"usd": ', such as "2.50"', "tokens": ", such as 500000"}.get(name, "")


def _quoted(value: object) -> str:
    text = str(value)
    return repr(text[:60] + "…" if len(text) > 60 else text) if isinstance(value, str) else str(value).lower()[:60]


def _kind_at(path: Path, model: type[BaseModel]) -> Any:
    kind: Any = model
    for part in path:
        kind = _inside(kind, part)
    return kind


def _inside(kind: Any, part: str | int) -> Any:
    found = next(_models(kind), None)
    if found is not None and part in found.model_fields:
        return found.model_fields[str(part)].annotation
    if found is not None:
        return None
    arguments = get_args(kind)
    return arguments[-1] if get_origin(kind) is dict else arguments[0] if arguments else None


def _models(kind: Any) -> Iterator[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel) and get_origin(kind) is None:
        yield kind
    elif get_origin(kind) not in (dict, Literal) and not (isinstance(kind, type) and issubclass(kind, Enum)):
        for argument in get_args(kind):
            yield from _models(argument)


def _named(key: str, model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every place where a setting of this name would be right."""
    for name, field in model.model_fields.items():
        if name == key:
            yield (*above, name)
        for inner in _models(field.annotation):
            yield from _named(key, inner, (*above, name))
