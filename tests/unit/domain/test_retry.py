"""After a failed attempt: wait, go to the next provider, or give up."""

from __future__ import annotations

import pytest

from backend.domain.model import CallFailed, FailureKind
from backend.domain.retry import (
    LAST_RETRY_AFTER,
    LONGEST_RETRY_AFTER,
    LONGEST_WAIT,
    Decision,
    GiveUp,
    NextChoice,
    Retry,
    decide,
)

RETRYABLE: list[FailureKind] = ["timeout", "connection", "rate_limited", "server_error", "conflict"]


def after(
    kind: FailureKind, attempt: int = 1, *, retry_after: float | None = None, more: bool = True, jitter: float = 1.0
) -> Decision:
    failure = CallFailed(kind, "it failed", retry_after=retry_after)
    return decide(failure, attempt=attempt, retries=3, more_choices=more, jitter=jitter)


@pytest.mark.parametrize("kind", RETRYABLE)
def test_what_may_pass_is_tried_again_until_the_retries_are_used_up(kind: FailureKind) -> None:
    assert isinstance(after(kind, 1), Retry)
    assert isinstance(after(kind, 3), Retry)
    assert after(kind, 4) == NextChoice()
    assert after(kind, 4, more=False) == GiveUp()


def test_what_will_not_pass_goes_to_the_next_provider_at_once() -> None:
    assert after("refused") == NextChoice()
    assert after("refused", more=False) == GiveUp()


def test_a_reply_that_cannot_be_read_is_asked_for_once_more() -> None:
    assert isinstance(after("unparsable", 1), Retry)
    assert after("unparsable", 2) == NextChoice()
    assert after("unparsable", 2, more=False) == GiveUp()
    never = decide(CallFailed("unparsable", ""), attempt=1, retries=0, more_choices=False, jitter=1.0)
    assert never == GiveUp()


def test_a_step_that_is_not_recorded_ends_the_search() -> None:
    assert after("not_covered") == GiveUp()


def test_waits_grow_with_the_attempts_up_to_a_ceiling_and_are_spread() -> None:
    waits = [
        decide(CallFailed("timeout", ""), attempt=n, retries=99, more_choices=False, jitter=1.0) for n in (1, 2, 3, 50)
    ]
    assert waits == [Retry(0.5), Retry(1.0), Retry(2.0), Retry(LONGEST_WAIT)]
    assert after("timeout", jitter=0.0) == Retry(0.25)


def test_retry_after_is_obeyed_and_an_absurd_one_is_passed_over() -> None:
    assert after("rate_limited", retry_after=7.0, jitter=0.0) == Retry(7.0)
    assert after("rate_limited", retry_after=0.0, jitter=0.0) == Retry(0.0)
    assert after("rate_limited", retry_after=LONGEST_RETRY_AFTER + 1) == NextChoice()
    patient = after("rate_limited", retry_after=LONGEST_RETRY_AFTER + 1, more=False, jitter=0.0)
    assert patient == Retry(LONGEST_RETRY_AFTER + 1)
    assert after("rate_limited", retry_after=LAST_RETRY_AFTER + 1, more=False) == GiveUp()
