"""The circuits of this process, one for each account at a provider; their state is a metric."""

from __future__ import annotations

import time
from urllib.parse import urlsplit

from backend import metrics
from backend.domain.circuit import COUNTED, Circuit, State
from backend.domain.config import OPENAI_URL, ProviderConfig
from backend.domain.model import CallFailed

_KEPT = 1_000


class Circuits:
    """Refuses calls to providers that do not answer, and learns from those that are made."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str | None], Circuit] = {}

    def admit(self, name: str, provider: ProviderConfig) -> None:
        """Let a call go out; raises `CallFailed` of kind `circuit_open`, which nobody bills, while none may."""
        circuit, now = self._of(provider), time.monotonic()
        left = circuit.wait(now)
        if left > 0:
            said = f"The provider {name} did not answer lately and is left alone for {left:.0f} s."
            raise CallFailed("circuit_open", said, retry_after=left)
        self._keep(provider, circuit.asked(now, provider.timeout_seconds))

    def answered(self, provider: ProviderConfig) -> None:
        """A call was answered."""
        self._keep(provider, self._of(provider).answered())

    def failed(self, provider: ProviderConfig, failure: CallFailed) -> None:
        """A call failed; only what tells of the provider's health counts against it."""
        circuit = self._of(provider)
        counts = failure.kind in COUNTED
        self._keep(provider, circuit.failed(time.monotonic()) if counts else circuit.answered())

    def state(self, provider: ProviderConfig) -> State:
        """Where the provider's circuit stands."""
        return self._of(provider).state(time.monotonic())

    def _of(self, provider: ProviderConfig) -> Circuit:
        return self._known.get(_account(provider), Circuit())

    def _keep(self, provider: ProviderConfig, circuit: Circuit) -> None:
        account = _account(provider)
        if circuit == self._known.get(account, Circuit()):
            return
        if len(self._known) >= _KEPT:
            self._known.clear()
        self._known[account] = circuit
        metrics.circuit_changed(urlsplit(account[0]).netloc, circuit.state(time.monotonic()))


def _account(provider: ProviderConfig) -> tuple[str, str | None]:
    return provider.base_url or OPENAI_URL, provider.key_variable
