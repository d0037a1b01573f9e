"""What of a run's settings cannot work on this installation: missing keys, unpriced models, recordings of others."""

from __future__ import annotations

from collections.abc import Sequence

from backend.adapters.llm import prices, replay
from backend.domain.config import RunConfig
from backend.domain.start import start_faults
from backend.errors import CompanyError, Fault
from backend.settings import provider_key


def faults(config: RunConfig, brief: str) -> Sequence[Fault]:
    """Everything that keeps a run with these settings and this brief from beginning here, a sentence each."""

    def recorded_brief(provider: str) -> str | None:
        try:
            return replay.load(config.models.providers[provider].recording or provider).brief
        except CompanyError:
            return None

    return start_faults(
        config,
        brief,
        has_key=lambda variable: provider_key(variable) is not None,
        is_priced=lambda provider, model: prices.price(config, provider, model) is not None,
        recorded_brief=recorded_brief,
    )
