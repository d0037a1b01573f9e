"""Fixtures of the acceptance tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.adapters.db.engine import Sessions
from tests.acceptance.desk import Desk
from tests.acceptance.faults.nursery import Nursery
from tests.acceptance.firm import Firm
from tests.openai_server import OpenAIServer
from tests.openai_server.server import Script
from tests.small_company import SmallCompany


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """One process that has imported everything, for all tests."""
    made = Nursery(tmp_path_factory.mktemp("nursery") / "log")
    yield made
    made.close()


@pytest.fixture(scope="session")
def desk() -> Iterator[Desk]:
    """Where commands are typed."""
    made = Desk()
    yield made
    made.close()


@pytest.fixture
def nursery(forks: Nursery) -> Iterator[Nursery]:
    """Workers by fork, ended after the test."""
    yield forks
    forks.clear()


@pytest.fixture
def hire(
    tmp_path: Path, database_url: str, redis_url: str, sessions: Sessions, make_run: Any, nursery: Nursery
) -> Iterator[Callable[..., Firm]]:
    """Makes a firm whose models follow a `SmallCompany`, or another script."""
    hired: list[Firm] = []

    def make(company: Script | None = None) -> Firm:
        server = OpenAIServer(company or SmallCompany())
        firm = Firm(tmp_path, database_url, redis_url, sessions, make_run, server, nursery=nursery)
        firm.server.__enter__()
        hired.append(firm)
        return firm

    yield make
    for firm in hired:
        firm.stop()
        firm.server.__exit__(None, None, None)
