"""The model of a request: agent > task type > provider > global, then the fallbacks."""

from __future__ import annotations

from typing import Any

import pytest

from backend.domain.model import Choice, ModelRequest
from backend.domain.model_choice import choices
from backend.domain.patch import merge
from backend.domain.role import Role
from backend.errors import Invalid

LAYERS: list[tuple[str, dict[str, Any]]] = [
    ("global", {"models": {"default": "global"}}),
    ("provider", {"models": {"providers": {"openai": {"default_model": "provider"}}}}),
    ("task", {"models": {"by_task_type": {"bug": "task"}}}),
    ("agent", {"roles": {"developer": {"model": "agent"}}}),
]


def request(role: Role = Role.DEVELOPER, task_type: str | None = "bug", ceiling: int | None = None) -> ModelRequest:
    return ModelRequest(role=role, messages=(), task_type=task_type, max_output_tokens=ceiling)


def first(*patches: dict[str, Any], asked: ModelRequest | None = None) -> Choice:
    return choices(merge(*patches), asked or request())[0]


@pytest.mark.parametrize("upto", range(1, 5))
def test_the_nearest_layer_names_the_model(upto: int) -> None:
    assert first(*(patch for _, patch in LAYERS[:upto])).model == LAYERS[upto - 1][0]


def test_a_task_type_counts_only_for_its_tasks() -> None:
    patches = [patch for _, patch in LAYERS[:3]]
    assert first(*patches, asked=request(task_type="feature")).model == "provider"
    assert first(*patches, asked=request(task_type=None)).model == "provider"


def test_a_model_can_name_its_provider_and_a_colon_alone_does_not() -> None:
    local = {"models": {"providers": {"ollama": {"base_url": "http://127.0.0.1:11434/v1"}}}}
    named = first(local, {"roles": {"developer": {"model": "ollama:qwen2.5-coder:7b"}}})
    assert (named.provider, named.model) == ("ollama", "qwen2.5-coder:7b")
    plain = first(local, {"roles": {"developer": {"model": "qwen2.5-coder:7b", "provider": "ollama"}}})
    assert (plain.provider, plain.model) == ("ollama", "qwen2.5-coder:7b")


def test_a_role_without_any_model_is_refused_saying_what_to_set() -> None:
    with pytest.raises(Invalid, match=r"set roles\.developer\.model"):
        choices(merge(), request())


def test_fallbacks_follow_in_order_with_their_own_models_each_once() -> None:
    config = merge(
        {
            "models": {
                "default": "m",
                "provider": "a",
                "providers": {
                    "a": {"base_url": "http://a", "fallbacks": ["b", "c"]},
                    "b": {"base_url": "http://b", "default_model": "mb", "fallbacks": ["d", "c"]},
                    "c": {"base_url": "http://c", "timeout_seconds": 7},
                    "d": {"base_url": "http://d"},
                },
            }
        }
    )
    found = choices(config, request())
    assert [(choice.provider, choice.model) for choice in found] == [("a", "m"), ("b", "mb"), ("c", "m"), ("d", "m")]
    assert found[2].timeout_seconds == 7


def test_the_degraded_model_stands_in_for_the_first_choice() -> None:
    config = merge({"models": {"default": "big"}, "budget": {"on_exceed": "degrade", "degrade_to": "small"}})
    assert choices(config, request(), degraded_to="small")[0].model == "small"


def test_a_request_lowers_the_output_ceiling_and_never_raises_it() -> None:
    config = {"models": {"default": "m"}, "roles": {"developer": {"max_output_tokens": 1000, "temperature": 0.2}}}
    assert first(config, asked=request(ceiling=50)).max_output_tokens == 50
    assert first(config, asked=request(ceiling=5000)).max_output_tokens == 1000
    assert first(config).temperature == 0.2


def test_a_replay_provider_needs_no_model() -> None:
    found = first({"models": {"provider": "r", "providers": {"r": {"kind": "replay", "recording": "x"}}}})
    assert (found.provider, found.model) == ("r", "recorded")
