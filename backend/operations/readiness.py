"""Whether a run can begin on this installation: its models have keys, prices and, where replayed, a recording."""

from __future__ import annotations

from collections.abc import Iterable

from backend.adapters.llm import prices
from backend.adapters.llm.replay import Recordings
from backend.domain.config import RunConfig
from backend.domain.role import Role
from backend.domain.start import start_faults
from backend.errors import Fault, Invalid, NotFound
from backend.settings import provider_key


def faults(
    config: RunConfig, brief: str, *, recordings: Recordings | None = None, roles: Iterable[Role] = tuple(Role)
) -> list[Fault]:
    """Return what keeps a run from beginning, each with what to set; empty when nothing does. Costs nothing.

    `recordings` are those of the installation (only those that ship where it is left out), `roles` those of the graph.
    """
    known = recordings or Recordings()
    return start_faults(
        config,
        brief,
        has_key=lambda variable: provider_key(variable) is not None,
        is_priced=lambda provider, model: prices.price(config, provider, model) is not None,
        recorded_brief=lambda provider: _recorded_brief(known, config, provider),
        roles=roles,
    )


def _recorded_brief(recordings: Recordings, config: RunConfig, provider: str) -> str | None:
    try:
        return recordings.load(config.models.providers[provider].recording or provider).brief
    except (NotFound, Invalid):
        return None
