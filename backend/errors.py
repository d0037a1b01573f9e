"""Conditions that inner layers raise; the edges (API, CLI, executor) decide what they mean outside.

Every message is a sentence that names the thing and says what to do. None carries a secret.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with an input: where (a JSON pointer such as `/budget/usd`) and what would be right."""

    pointer: str
    message: str


class CompanyError(Exception):
    """The root of every condition; `code` is stable, snake_case and part of the API."""

    code = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code


class NotFound(CompanyError):
    """There is no such thing, or it belongs to somebody else."""

    code = "not_found"


class Conflict(CompanyError):
    """The thing is not in a state in which this may be done, or was changed meanwhile."""

    code = "conflict"


class Invalid(CompanyError):
    """The input cannot be accepted; `faults` names each place and what would be right."""

    code = "invalid"

    def __init__(self, message: str, *, code: str | None = None, faults: Sequence[Fault] = ()) -> None:
        super().__init__(message, code=code)
        self.faults = tuple(faults)


class Forbidden(CompanyError):
    """The caller may not do this."""

    code = "forbidden"


class LimitReached(CompanyError):
    """A limit in tokens, money, time or rate would be passed; nothing was spent."""

    code = "limit_reached"


class Unavailable(CompanyError):
    """Something that is needed is away (database, broker, sandbox, scanner, model); nothing was done."""

    code = "unavailable"
