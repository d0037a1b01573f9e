"""What was typed, as values: the text of a brief, settings as a patch, an amount of money."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from backend.errors import Fault, Invalid

_MOST_BYTES = 2_000_000
_FILE_NAME = re.compile(r"\.[A-Za-z]{1,10}$")


def brief_of(given: str) -> str:
    """The text of the brief: a file where there is one of this name, standard input for `-`, else the text itself."""
    if given == "-":
        return _decoded(sys.stdin.buffer.read(_MOST_BYTES), "standard input")
    if _is_path(given):
        return _read(Path(given))
    if not any(map(str.isspace, given)) and ("/" in given or _FILE_NAME.search(given)):
        raise Invalid(f"There is no file {given}.", code="invalid_brief")
    return given


def _is_path(given: str) -> bool:
    try:
        return bool(given) and Path(given).exists()
    except (OSError, ValueError):  # longer than a name may be, or with a NUL in it: a text
        return False


def _read(path: Path) -> str:
    if path.is_dir():
        raise Invalid(f"{path} is a directory; name a file in it, or write the brief itself.", code="invalid_brief")
    try:
        with path.open("rb") as file:
            return _decoded(file.read(_MOST_BYTES), str(path))
    except OSError as error:
        raise Invalid(f"The brief in {path} cannot be read ({error.strerror}).", code="invalid_brief") from error


def _decoded(body: bytes, source: str) -> str:
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Invalid(f"The brief in {source} is not text in UTF-8; save it as UTF-8.", code="invalid_brief") from error


def patch_of(pairs: Sequence[str], usd: str | None, tokens: int | None) -> dict[str, Any]:
    """The settings that `--set` and the budget options name; raises `Invalid` for what is none."""
    patch: dict[str, Any] = {}
    for pair in pairs:
        path, equals, value = pair.partition("=")
        if not equals or not path.strip():
            raise Invalid(f"`--set {pair}` is not KEY=VALUE; write it as parallelism=3.")
        _put(patch, path.strip().split("."), _value(value), pair)
    if usd is not None:
        _put(patch, ["budget", "usd"], str(money_of(usd)), "--budget-usd")
    if tokens is not None:
        _put(patch, ["budget", "tokens"], tokens, "--budget-tokens")
    return patch


def _put(patch: dict[str, Any], path: Sequence[str], value: Any, said: str) -> None:
    at = patch
    for key in path[:-1]:
        at = at.setdefault(key, {})
        if not isinstance(at, dict):
            raise Invalid(f"`{said}` sets something below a setting that has a value already.")
    at[path[-1]] = value


def _value(text: str) -> Any:
    """YAML decides what a value is: 3 is a number, true a switch, null takes a setting back to its default."""
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise Invalid(f"The value `{text[:100]}` cannot be read.") from error


def money_of(text: str, option: str = "--budget-usd") -> Decimal:
    """An amount of USD; raises `Invalid` with the name of the option."""
    right = "an amount in USD above 0 with up to six decimals, such as 2.50"
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount <= 0 or amount > 1_000_000 or int(amount.as_tuple().exponent) < -6:
        raise Invalid(f"{option} takes {right}.", faults=[Fault("/budget/usd", right)])
    return amount
