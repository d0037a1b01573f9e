"""The circuit of a provider: closed while it answers, open after failures in a row, then one probe at a time.

Pure: whoever keeps a circuit brings the time (seconds of any clock that never goes back).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from backend.domain.model import FailureKind

FAILURES = 10
"""Failures in a row, of whichever calls, that open a circuit."""
COOL_SECONDS = 10.0
LONGEST_SECONDS = 120.0
COUNTED: frozenset[FailureKind] = frozenset({"timeout", "connection", "server_error"})
"""Failures that tell of the provider's health; a refusal or a rate limit is an answer."""

State = Literal["closed", "open", "half_open"]


@dataclass(frozen=True, slots=True)
class Circuit:
    """What is known of one provider."""

    failures: int = 0
    cool_seconds: float = COOL_SECONDS
    open_until: float | None = None
    probing_until: float | None = None
    """While a probe is on its way, nobody else asks; a probe that never ends is given up at this time."""

    def state(self, now: float) -> State:
        """Where the circuit stands."""
        if self.open_until is None:
            return "closed"
        return "open" if now < self.open_until else "half_open"

    def wait(self, now: float) -> float:
        """Seconds until it is worth asking; 0 when a call may go out now."""
        if self.open_until is None:
            return 0.0
        return max(0.0, self.open_until - now, (self.probing_until or 0.0) - now)

    def asked(self, now: float, patience: float) -> Circuit:
        """A call goes out; of a half-open circuit it is the probe, which takes `patience` seconds at most."""
        return replace(self, probing_until=now + patience) if self.state(now) == "half_open" else self

    def answered(self) -> Circuit:
        """The provider answered, in whichever way."""
        return Circuit()

    def failed(self, now: float) -> Circuit:
        """The provider did not answer; a probe that failed opens the circuit for twice as long."""
        if self.open_until is not None:
            if now < self.open_until:
                return self  # a call that was sent before it opened
            longer = min(LONGEST_SECONDS, 2 * self.cool_seconds)
            return replace(self, cool_seconds=longer, open_until=now + longer, probing_until=None)
        if self.failures + 1 < FAILURES:
            return replace(self, failures=self.failures + 1)
        return replace(self, failures=self.failures + 1, open_until=now + self.cool_seconds)
