"""What the environment says wrongly is refused by the names of its variables, and its values are not repeated."""

from __future__ import annotations

import pytest

from backend.errors import Invalid
from backend.settings import Settings


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("COMPANY_PORT", "hush-hush"),
        ("COMPANY_PORT", "99999"),
        ("COMPANY_ENVIRONMENT", "hush-hush"),
        ("COMPANY_ENGINE", "hush-hush"),
        ("COMPANY_ENGINE__LEASE_SECONDS", "-1"),
        ("COMPANY_ENGINE__COMMANDS", "hush-hush"),
        ("COMPANY_ENGINE__SPEED", "9"),
    ],
)
def test_a_variable_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(Invalid) as refused:
        Settings()
    assert variable.removeprefix("COMPANY_").split("__")[0] in refused.value.message.upper()
    assert refused.value.message.endswith(".")
    assert "hush" not in refused.value.message
