"""Prices: the run's own, then `prices.yaml`, then the public table; never a guess."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from backend.adapters.llm.prices import is_local, price, recorded_cost
from backend.domain.config import RunConfig
from backend.domain.model import Usage
from backend.domain.patch import merge

MILLION = Usage(1_000_000, 1_000_000, 0)


def config(base_url: str = "http://127.0.0.1:11434/v1", **prices: Any) -> RunConfig:
    return merge({"models": {"providers": {"local": {"base_url": base_url}}, "prices": prices}})


def cost(settings: RunConfig, provider: str, model: str, usage: Usage = MILLION) -> Decimal | None:
    found = price(settings, provider, model)
    return None if found is None else found.cost(usage)


def test_public_models_have_their_public_price_and_its_source() -> None:
    found = price(config(), "openai", "gpt-4o-mini")
    assert found is not None
    assert found.cost(MILLION) == Decimal("0.75")
    assert found.version.startswith("genai-prices ")


def test_the_runs_own_price_comes_first_and_a_providers_own_before_that() -> None:
    both = config(**{"gpt-4o": {"input": "1", "output": "2"}, "local:gpt-4o": {"input": 0, "output": 0}})
    assert cost(both, "openai", "gpt-4o") == 3
    assert cost(both, "local", "gpt-4o") == 0


def test_cached_tokens_have_their_own_price_where_there_is_one() -> None:
    usage = Usage(1_000_000, 0, 400_000)
    assert cost(config(m={"input": 10, "output": 0, "cached_input": 1}), "local", "m", usage) == Decimal("6.4")
    assert cost(config(m={"input": 10, "output": 0}), "local", "m", usage) == 10


def test_money_is_rounded_up_to_a_millionth() -> None:
    assert cost(config(m={"input": "0.01", "output": 0}), "local", "m", Usage(1, 0)) == Decimal("0.000001")
    assert cost(config(m={"input": 0, "output": 0}), "local", "m", Usage(1, 1)) == 0


@pytest.mark.parametrize("model", ["qwen2.5-coder:7b", "llama3.1", "Qwen/Qwen2.5-Coder-32B-Instruct", "gpt-oss:20b"])
def test_open_models_on_this_network_cost_nothing(model: str) -> None:
    assert cost(config(), "local", model) == 0


def test_an_open_model_somewhere_else_is_not_free() -> None:
    assert cost(config("https://api.example.com/v1"), "local", "qwen-house-blend-9") is None


def test_a_paid_model_behind_a_proxy_on_this_machine_costs_what_it_costs() -> None:
    assert cost(config(), "local", "gpt-4o") == cost(config(), "openai", "gpt-4o")


def test_an_unknown_model_has_no_price() -> None:
    assert price(config(), "openai", "model-that-nobody-made") is None


def test_a_replayed_call_costs_nothing_and_its_recorded_cost_is_known() -> None:
    replayed = merge({"models": {"providers": {"show": {"kind": "replay"}}}})
    found = price(replayed, "show", "gpt-4o")
    assert found is not None
    assert found.cost(MILLION) == 0
    assert found.version.startswith("replay")
    assert recorded_cost("gpt-4o", Usage(1000, 100, 0)) == "0.003500"
    assert recorded_cost("model-that-nobody-made", MILLION) is None


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://localhost:8000/v1", True),
        ("http://127.9.9.9/v1", True),
        ("http://[::1]:8080/v1", True),
        ("http://192.168.1.5/v1", True),
        ("http://ollama:11434/v1", True),
        ("http://host.docker.internal/v1", True),
        ("https://api.openai.com/v1", False),
        ("http://8.8.8.8/v1", False),
        ("http://127.0.0.1.evil.example/v1", False),
    ],
)
def test_what_counts_as_this_network(url: str, local: bool) -> None:
    assert is_local(url) is local
