"""Settings are merged in one order, and whatever is wrong is refused by its path with what would be right."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from backend.domain.config import RunConfig
from backend.domain.patch import merge, restore, snapshot
from backend.errors import Invalid


def refused(*patches: Any) -> dict[str, str]:
    with pytest.raises(Invalid) as caught:
        merge(*patches)
    return {fault.pointer: fault.message for fault in caught.value.faults}


def test_no_patch_gives_the_defaults() -> None:
    assert merge() == merge({}) == RunConfig()


def test_later_patches_win_over_earlier_ones_key_by_key() -> None:
    config = merge(
        {"budget": {"usd": "5", "tokens": 100}, "roles": {"pm": {"model": "gpt-4o"}}},
        {"budget": {"usd": 3}},
        {"roles": {"pm": {"temperature": 0.5}}},
    )
    assert (config.budget.usd, config.budget.tokens) == (Decimal(3), 100)
    assert (config.roles["pm"].model, config.roles["pm"].temperature) == ("gpt-4o", 0.5)


def test_a_patch_may_be_the_text_that_the_database_keeps() -> None:
    patches: list[dict[str, Any]] = [
        {"budget": {"usd": "5"}},
        {"roles": {"pm": {"model": "gpt-4o"}}},
        {"parallelism": 7},
    ]
    assert merge(*patches) == merge(json.dumps(patches[0]), json.dumps(patches[1], indent=1), patches[2])
    assert refused(json.dumps({"budgets": {}}), {"parallelism": "many"}) == refused(
        {"budgets": {}}, {"parallelism": "many"}
    )


def test_a_null_takes_a_field_a_section_or_a_map_entry_back_to_its_default() -> None:
    base = {
        "budget": {"usd": "5"},
        "parallelism": 7,
        "models": {"providers": {"openai": {"base_url": "http://other/v1"}, "mine": {"base_url": "http://mine"}}},
    }
    config = merge(base, {"budget": None, "parallelism": None, "models": {"providers": {"openai": None, "mine": None}}})
    assert config == RunConfig()


def test_a_null_in_a_new_map_entry_takes_that_fields_default() -> None:
    config = merge({"models": {"providers": {"mine": {"base_url": "http://mine", "timeout_seconds": None}}}})
    assert config.models.providers["mine"].timeout_seconds == 120


def test_the_snapshot_reads_back_exactly_and_keeps_money_as_text() -> None:
    config = merge(
        {
            "budget": {"usd": 0.1, "roles": {"pm": {"usd": "0.010000"}}},
            "models": {"prices": {"x": {"input": 0.15, "output": "0.60"}}},
        }
    )
    kept = json.loads(json.dumps(snapshot(config)))
    assert restore(kept) == config
    assert snapshot(restore(kept)) == kept
    assert kept["budget"]["usd"] == "0.1"
    assert kept["models"]["prices"]["x"]["output"] == "0.60"


def test_a_snapshot_that_this_release_does_not_know_is_refused() -> None:
    with pytest.raises(Invalid, match="There is no setting warp"):
        restore({**snapshot(RunConfig()), "warp": 9})


@pytest.mark.parametrize(
    ("patch", "pointer", "message"),
    [
        ({"budget": {"usd": 0}}, "/budget/usd", "budget.usd must be more than 0"),
        ({"budget": {"usd": -1}}, "/budget/usd", "must be more than 0"),
        ({"budget": {"usd": float("nan")}}, "/budget/usd", "must be a finite number"),
        ({"budget": {"usd": float("inf")}}, "/budget/usd", "must be a finite number"),
        ({"budget": {"usd": Decimal("NaN")}}, "/budget/usd", "must be a finite number"),
        ({"budget": {"usd": "NaN"}}, "/budget/usd", "must be a finite number"),
        ({"budget": {"usd": json.loads("1e400")}}, "/budget/usd", "must be a finite number"),
        ({"budget": {"usd": "1e400"}}, "/budget/usd", "absurdly large"),
        ({"budget": {"usd": 1e300}}, "/budget/usd", "absurdly large"),
        ({"budget": {"usd": "1.1234567"}}, "/budget/usd", "at most 6 decimal places"),
        ({"budget": {"usd": True}}, "/budget/usd", "must be a number of US dollars"),
        ({"budget": {"usd": "five"}}, "/budget/usd", "must be a number of US dollars"),
        ({"budget": {"tokens": True}}, "/budget/tokens", "must be a whole number of tokens"),
        ({"budget": {"tokens": 1.5}}, "/budget/tokens", "must be a whole number of tokens"),
        ({"budget": {"tokens": 10**40}}, "/budget/tokens", "absurdly large"),
        ({"budget": {"tokens": 10**25}}, "/budget/tokens", "must be at most"),
        (
            {"budget": {"seconds": "1h"}},
            "/budget/seconds",
            "a whole number of seconds, such as 3600 for an hour (not '1h')",
        ),
        ({"sandbox": {"memory_mb": "1GB"}}, "/sandbox/memory_mb", "a whole number of megabytes"),
        ({"parallelism": 0}, "/parallelism", "must be at least 1"),
        ({"people": {"may_ask": "yes"}}, "/people/may_ask", "must be true or false"),
        ({"people": {"may_ask": 1}}, "/people/may_ask", "must be true or false"),
        ({"security": {"gate": "block"}}, "/security/gate", "must be one of off, warn, block_critical"),
        ({"checks": {"scanners": ["bandti"]}}, "/checks/scanners/0", "did you mean bandit?"),
        ({"review": 5}, "/review", "must be an object of settings"),
        ({"budget": []}, "/budget", "must be an object of settings"),
        ({"checks": {"scanners": "bandit"}}, "/checks/scanners", "must be a list"),
        ({"graph": "a\x00b"}, "/graph", "NUL"),
        ({"graph": "\ud800"}, "/graph", "surrogate"),
        ({"graph": ""}, "/graph", "at least 1 character"),
        ({"graph": b"x"}, "/graph", "must be JSON"),
        ({"a": {1: 2}}, "/a", "a key that is no short text"),
        ({"roles": {"pm": {"model": "a b"}}}, "/roles/pm/model", "without spaces"),
    ],
)
def test_a_wrong_value_is_refused_with_its_path_and_what_would_be_right(patch: Any, pointer: str, message: str) -> None:
    assert message in refused(patch)[pointer]


@pytest.mark.parametrize(
    ("patch", "pointer", "message"),
    [
        ({"budgt": {}}, "/budgt", "did you mean budget?"),
        ({"usd": 5}, "/usd", "did you mean budget.usd?"),
        ({"roles": {"developer": {"modle": "x"}}}, "/roles/developer/modle", "in roles.developer; did you mean model?"),
        ({"roles": {"devloper": {}}}, "/roles/devloper", "did you mean developer?"),
        ({"models": {"providers": {"x": {"base_url": "http://x", "uri": 1}}}}, "/models/providers/x/uri", "there are:"),
        ({"nothing_like_it": None}, "/nothing_like_it", "There is no setting nothing_like_it"),
        ({"a/b~c": 1}, "/a~1b~0c", "There is no setting a/b~c"),
    ],
)
def test_an_unknown_key_is_refused_with_a_suggestion(patch: Any, pointer: str, message: str) -> None:
    assert message in refused(patch)[pointer]


@pytest.mark.parametrize(
    ("patch", "pointer", "message"),
    [
        ({"models": {"provider": "opena"}}, "/models/provider", "did you mean openai?"),
        ({"roles": {"qa": {"provider": "nope"}}}, "/roles/qa/provider", "which models.providers has not"),
        ({"models": {"by_task_type": {"feture": "x"}}}, "/models/by_task_type/feture", "did you mean feature?"),
        ({"budget": {"on_exceed": "degrade"}}, "/budget/degrade_to", "must name the cheaper model"),
        ({"budget": {"usd": 1, "roles": {"pm": {"usd": 2}}}}, "/budget/roles/pm/usd", "at most budget.usd (1)"),
        ({"budget": {"tokens": 5, "roles": {"pm": {"tokens": 6}}}}, "/budget/roles/pm/tokens", "at most budget.tokens"),
        ({"budget": {"warn_at": [0.9, 0.5]}}, "/budget/warn_at", "must rise"),
        ({"roles": {"pm": {"enabled": False}}}, "/roles/pm/enabled", "no run goes without this role"),
        ({"models": {"providers": {"x": {}}}}, "/models/providers/x/base_url", "is missing"),
        (
            {"models": {"providers": {"x": {"base_url": "http://u:p@h"}}}},
            "/models/providers/x/base_url",
            "no user, password",
        ),
        (
            {"models": {"providers": {"x": {"base_url": "http://[oops"}}}},
            "/models/providers/x/base_url",
            "no user, password",
        ),
        (
            {"models": {"providers": {"x": {"base_url": "file:///etc"}}}},
            "/models/providers/x/base_url",
            "http:// or https://",
        ),
        (
            {"models": {"providers": {"x": {"kind": "replay", "base_url": "http://h"}}}},
            "/models/providers/x",
            "neither base_url nor key_variable",
        ),
        (
            {"models": {"providers": {"x": {"base_url": "http://h", "recording": "y"}}}},
            "/models/providers/x/recording",
            "only for kind: replay",
        ),
        ({"workspace": {"source": "remote"}}, "/workspace/remote", "is missing"),
        ({"workspace": {"push": True}}, "/workspace/remote", "is missing"),
        ({"workspace": {"remote": "ext::sh -c id"}}, "/workspace/remote", "must be an https, ssh or git address"),
        ({"workspace": {"remote": "file:///etc"}}, "/workspace/remote", "must be an https, ssh or git address"),
        ({"workspace": {"remote": "https://me:secret@host/x"}}, "/workspace/remote", "must hold no password"),
        ({"workspace": {"branch": "a..b"}}, "/workspace/branch", "name of a git branch"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(patch: Any, pointer: str, message: str) -> None:
    assert message in refused(patch)[pointer]


def test_fallbacks_must_exist_and_not_go_in_a_circle() -> None:
    def providers(**fallbacks: list[str]) -> Any:
        return {
            "models": {
                "providers": {
                    name: {"base_url": f"http://{name}", "fallbacks": names} for name, names in fallbacks.items()
                }
            }
        }

    assert "leads back to a" in refused(providers(a=["a"]))["/models/providers/a/fallbacks/0"]
    assert "leads back to a" in refused(providers(a=["b"], b=["c"], c=["a"]))["/models/providers/a/fallbacks/0"]
    assert "unknown provider" in refused(providers(a=["b"]))["/models/providers/a/fallbacks/0"]
    assert merge(providers(a=["b", "c"], b=["c"], c=[])).models.providers["a"].fallbacks == ("b", "c")


def test_everything_wrong_is_named_at_once() -> None:
    found = refused({"parallelism": 0, "budget": {"usd": 0, "seconds": "1h"}, "nope": 1})
    assert set(found) == {"/parallelism", "/budget/usd", "/budget/seconds", "/nope"}


def test_a_pasted_key_or_password_is_not_repeated_in_the_error() -> None:
    secret = "sk-proj-0123456789abcdef"
    found = refused(
        {"models": {"providers": {"openai": {"key_variable": secret, "base_url": f"ftp://u:{secret}@h"}}}},
    )
    assert found
    assert not [message for message in found.values() if secret in message]


@pytest.mark.parametrize("variable", ["DATABASE_URL", "REDIS_URL", "HOME", "PATH", "COMPANY_HOME"])
def test_only_variables_that_hold_keys_can_be_sent_to_an_endpoint(variable: str) -> None:
    assert "ends in _KEY or _TOKEN" in "".join(
        refused({"models": {"providers": {"openai": {"key_variable": variable}}}}).values()
    )


def test_a_patch_that_is_nested_without_end_is_refused() -> None:
    patch: dict[str, Any] = {}
    inner = patch
    for _ in range(100_000):
        inner["a"] = inner = {}
    assert "nested too deeply" in "".join(refused(patch).values())


def test_a_huge_patch_is_refused() -> None:
    names = {f"model-{number}": {"input": 1, "output": 1} for number in range(10_000)}
    with pytest.raises(Invalid, match="bytes"):
        merge({"models": {"prices": names}})
