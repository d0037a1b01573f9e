"""A run that cannot work is refused before it begins, saying what to set."""

from __future__ import annotations

from typing import Any

from backend.domain.patch import merge
from backend.domain.role import Role
from backend.domain.start import start_faults

OWN = {"models": {"default": "m", "provider": "mine", "providers": {"mine": {"base_url": "http://127.0.0.1:1/v1"}}}}
REPLAY = {"models": {"provider": "show", "providers": {"show": {"kind": "replay", "recording": "demo"}}}}


def faults(
    *patches: dict[str, Any],
    keys: tuple[str, ...] = (),
    priced: tuple[str, ...] = (),
    recorded: str | None = "the recorded brief",
    brief: str = "a brief of my own",
    roles: tuple[Role, ...] = tuple(Role),
) -> dict[str, str]:
    found = start_faults(
        merge(*patches),
        brief,
        has_key=lambda variable: variable in keys,
        is_priced=lambda _provider, model: model in priced,
        recorded_brief=lambda _provider: recorded,
        roles=roles,
    )
    return {fault.pointer: fault.message for fault in found}


def test_an_endpoint_without_key_and_money_limit_can_begin() -> None:
    assert faults(OWN) == {}


def test_a_key_that_is_not_set_is_named() -> None:
    config = {"models": {"default": "gpt-4o"}}
    found = faults(config)
    assert "OPENAI_API_KEY" in found["/models/providers/openai/key_variable"]
    assert faults(config, keys=("OPENAI_API_KEY",)) == {}


def test_the_key_of_a_fallback_is_needed_too() -> None:
    spare = {"models": {"providers": {"mine": {"fallbacks": ["openai"]}}}}
    assert "/models/providers/openai/key_variable" in faults(OWN, spare)


def test_a_provider_that_nobody_uses_needs_no_key() -> None:
    assert "openai" not in "".join(faults(OWN))


def test_a_role_without_a_model_is_refused() -> None:
    found = faults({}, keys=("OPENAI_API_KEY",))
    assert "set roles.pm.model" in found["/roles/pm/model"]


def test_a_role_that_is_switched_off_needs_no_model() -> None:
    off = {"roles": {"lead": {"enabled": False}}}
    assert "/roles/lead/model" not in faults(off, keys=("OPENAI_API_KEY",))


def test_a_money_limit_needs_prices_for_every_model_that_may_be_called() -> None:
    limited = {"budget": {"usd": 1, "on_exceed": "degrade", "degrade_to": "small"}}
    assert "the model m of provider mine" in faults(OWN, limited, priced=("small",))["/models/prices"]
    assert "the model small" in faults(OWN, limited, priced=("m",))["/models/prices"]
    assert faults(OWN, limited, priced=("m", "small")) == {}
    by_type = {"models": {"by_task_type": {"bug": "odd"}}}
    assert "the model odd" in faults(OWN, by_type, limited, priced=("m", "small"))["/models/prices"]


def test_a_cap_of_a_role_in_money_needs_prices_too() -> None:
    assert "/models/prices" in faults(OWN, {"budget": {"roles": {"pm": {"usd": 1}}}})


def test_a_replay_takes_only_the_brief_that_it_was_recorded_for() -> None:
    assert faults(REPLAY, brief="the  recorded\nbrief ") == {}
    assert "OPENAI_API_KEY" in faults(REPLAY)["/models/providers/show/recording"]


def test_a_recording_that_is_not_there_is_said() -> None:
    assert "not there" in faults(REPLAY, recorded=None)["/models/providers/show/recording"]


def test_a_graph_without_roles_needs_no_model() -> None:
    assert faults({}, roles=()) == {}
    assert faults({"budget": {"usd": 1}, "models": {"default": "unpriced"}}, roles=()) == {}


def test_only_the_roles_of_the_graph_need_models() -> None:
    assert set(faults({}, keys=("OPENAI_API_KEY",), roles=(Role.QA,))) == {"/roles/qa/model"}
