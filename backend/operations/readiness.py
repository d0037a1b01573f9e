"""Whether a run can begin on this installation: its models have keys, prices and, where replayed, a recording."""

from __future__ import annotations

from backend.adapters.llm import prices, replay
from backend.domain.config import RunConfig
from backend.domain.start import start_faults
from backend.errors import Fault, Invalid, NotFound
from backend.settings import provider_key


def faults(config: RunConfig, brief: str) -> list[Fault]:
    """Return what keeps a run from beginning, each with what to set; empty when nothing does. Costs nothing."""
    return start_faults(
        config,
        brief,
        has_key=lambda variable: provider_key(variable) is not None,
        is_priced=lambda provider, model: prices.price(config, provider, model) is not None,
        recorded_brief=lambda provider: _recorded_brief(config, provider),
    )


def _recorded_brief(config: RunConfig, provider: str) -> str | None:
    try:
        return replay.load(config.models.providers[provider].recording or provider).brief
    except (NotFound, Invalid):
        return None
