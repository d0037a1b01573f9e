"""What to do after a failed attempt at a model call: wait and try again, go to the next provider, or give up."""

from __future__ import annotations

from dataclasses import dataclass

from backend.domain.model import CallFailed

FIRST_WAIT = 0.5
LONGEST_WAIT = 30.0
LONGEST_RETRY_AFTER = 120.0
"""A provider that asks for more patience than this is passed over while there is another one."""
LAST_RETRY_AFTER = 600.0
"""The most patience there is with the last provider of the list."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Send the same request to the same provider after so many seconds."""

    after: float


@dataclass(frozen=True, slots=True)
class NextChoice:
    """Go on with the next provider of the list, at once."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No provider is left that could answer."""


Decision = Retry | NextChoice | GiveUp


def decide(failure: CallFailed, *, attempt: int, retries: int, more_choices: bool, jitter: float) -> Decision:
    """Decide after the `attempt`-th try (from 1) at one provider failed.

    `jitter` is a random number from 0 to 1 that spreads the waits ("full jitter" on the upper half of an exponential
    backoff). `Retry-After` is obeyed within reason. A reply that could not be parsed is asked for once more, since
    it may have been billed; a recording that lacks a step ends the search, since no other provider was recorded. A
    provider whose circuit is open is passed over at once; the last of the list is waited for.
    """
    onwards = NextChoice() if more_choices else GiveUp()
    if failure.kind == "not_covered":
        return GiveUp()
    if failure.kind == "circuit_open" and more_choices:
        return onwards
    tries = min(retries, 1) if failure.kind == "unparsable" else retries if failure.retryable else 0
    if attempt > tries:
        return onwards
    if failure.retry_after is not None:
        if failure.retry_after > (LONGEST_RETRY_AFTER if more_choices else LAST_RETRY_AFTER):
            return onwards
        return Retry(after=failure.retry_after + jitter * FIRST_WAIT)
    ceiling = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(attempt - 1, 16))
    return Retry(after=ceiling * (0.5 + 0.5 * jitter))
