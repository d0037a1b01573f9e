"""Fixtures of the acceptance tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.adapters.db.engine import Sessions
from tests.acceptance.firm import Firm
from tests.openai_server import OpenAIServer
from tests.openai_server.server import Script
from tests.small_company import SmallCompany


@pytest.fixture
def hire(
    tmp_path: Path, database_url: str, redis_url: str, sessions: Sessions, make_run: Any
) -> Iterator[Callable[..., Firm]]:
    """Makes a firm whose models follow a `SmallCompany`, or another script."""
    hired: list[Firm] = []

    def make(company: Script | None = None) -> Firm:
        firm = Firm(tmp_path, database_url, redis_url, sessions, make_run, OpenAIServer(company or SmallCompany()))
        firm.server.__enter__()
        hired.append(firm)
        return firm

    yield make
    for firm in hired:
        firm.stop()
        firm.server.__exit__(None, None, None)
