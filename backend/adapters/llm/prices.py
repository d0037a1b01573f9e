"""What tokens cost: the run's own prices, then `prices.yaml` beside, then the offline table of genai-prices.

Money is Decimal in USD, rounded up to a millionth. No price is ever guessed: an unknown model has none.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_UP, Decimal
from fnmatch import fnmatchcase
from functools import cache, lru_cache, partial
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

import yaml

from backend.domain.config import OPENAI_URL, ModelPrice, RunConfig
from backend.domain.model import Usage

MICRO = Decimal("0.000001")
_MILLION = Decimal(1_000_000)
FREE = ModelPrice(input=Decimal(0), output=Decimal(0))


@dataclass(frozen=True, slots=True)
class Price:
    """A model's price and where it came from."""

    version: str
    cost: Callable[[Usage], Decimal]
    """USD of a usage, rounded up to a millionth."""


def price(config: RunConfig, provider: str, model: str) -> Price | None:
    """Return the price of a provider's model under a run's configuration; None where nothing prices it."""
    own = config.models.prices.get(f"{provider}:{model}") or config.models.prices.get(model)
    if own is not None:
        return _flat(own, "models.prices of the run")
    endpoint = config.models.providers[provider]
    if endpoint.kind == "replay":
        return _flat(FREE, "replay (already paid when it was recorded)")
    return _listed(endpoint.base_url or OPENAI_URL, model) or _public(endpoint.base_url or OPENAI_URL, model)


def recorded_cost(model: str | None, usage: Usage) -> str | None:
    """Return what a recorded call would cost at today's public price of its model; None where there is none."""
    known = _public(OPENAI_URL, model) if model is not None else None
    return None if known is None else str(known.cost(usage))


def is_local(url: str) -> bool:
    """Whether an endpoint is on this machine or a private network, by its address alone (no name is looked up)."""
    host = (urlsplit(url).hostname or "").lower()
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        # A name without a dot is a machine or container of this network.
        return "." not in host or host.endswith((".local", ".localhost", ".internal", ".lan", ".home.arpa"))
    return address.is_loopback or address.is_private or address.is_link_local


def _flat(listed: ModelPrice, version: str) -> Price:
    def cost(usage: Usage) -> Decimal:
        cached = min(usage.cached_tokens, usage.input_tokens)
        cached_price = listed.input if listed.cached_input is None else listed.cached_input
        dollars = (usage.input_tokens - cached) * listed.input + cached * cached_price
        return _up((dollars + usage.output_tokens * listed.output) / _MILLION)

    return Price(version, cost)


def _listed(url: str, model: str) -> Price | None:
    table = _table()
    version = f"prices.yaml {table['version']}"
    if model in table["models"]:
        return _flat(ModelPrice.model_validate(table["models"][model]), version)
    family = model.rpartition("/")[2].lower()
    if is_local(url) and any(fnmatchcase(family, pattern) for pattern in table["local"]):
        return _flat(FREE, version)
    return None


@lru_cache(maxsize=1024)
def _public(url: str, model: str) -> Price | None:
    """The price of the provider behind `url`, or of the model wherever it is known best (a proxy in front of it)."""
    import genai_prices  # takes a tenth of a second; not for --help

    def total(known_url: str | None, usage: Usage) -> Decimal:
        counted = genai_prices.Usage(
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cache_read_tokens=min(usage.cached_tokens, usage.input_tokens),
        )
        return _up(genai_prices.calc_price(counted, model, provider_api_url=known_url).total_price)

    for known_url in (url, None):
        try:
            total(known_url, Usage(1000, 1000, 0))
        except (LookupError, ValueError):
            continue
        return Price(f"genai-prices {genai_prices.__version__}", partial(total, known_url))
    return None


@cache
def _table() -> dict[str, Any]:
    loaded = yaml.safe_load(resources.files(__package__ or "").joinpath("prices.yaml").read_text("utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def _up(dollars: Decimal) -> Decimal:
    return dollars.quantize(MICRO, rounding=ROUND_UP)
