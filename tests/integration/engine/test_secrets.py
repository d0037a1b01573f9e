"""A secret that a scanner found is told to nobody: no finding, comment, task, event, checkpoint or prompt holds it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backend.domain.model import ModelRequest, Position
from backend.engine.workbench import workbenches
from backend.settings import Settings
from tests.acceptance.small_company import SmallCompany
from tests.acceptance.stage import call
from tests.integration.engine.conftest import Company
from tests.integration.engine.test_company_ends import Spoken, begin, status

CANARIES = ("canary horse battery", "9f1c4e7a2b8d6053canary", "AKIA" + "CANARY4M2PLN5RTU")
LEAK = (
    f"password = {CANARIES[0]!r}\n"
    f"API_TOKEN = {CANARIES[1]!r}\n"
    f"KEY = {CANARIES[2]!r}\n"
    f"requirement = 'https://ada:{CANARIES[1]}@host/x'\n"
)
SEES_FILES = ("dev_work", "lead_review")
"""Who works on the file itself: what they write and read is journalled as it was."""


class Talkative(SmallCompany):
    """A company whose security engineer quotes what it saw."""

    def _security_scan(self, request: ModelRequest, position: Position):  # type: ignore[no-untyped-def] # as above
        ((name, told),) = super()._security_scan(request, position)
        quoted = " ".join(CANARIES)
        for found in told["findings"]:
            found["explanation"] = f"It says {quoted}."
            found["proposal"] = f"Remove {quoted}."
        return [(name, told | {"summary": f"Everybody can read {quoted}."})]


@pytest.fixture
async def talkative(company: Company, tmp_path: Path) -> AsyncIterator[tuple[Company, Talkative]]:
    people = Talkative()
    company.transport = Spoken(people)  # type: ignore[assignment] # the small company where the script stood
    company.executor = company.worker("talkative", lease_seconds=60)
    company.executor.workbenches = workbenches(Settings(home=tmp_path, redis_url=None))
    yield company, people


async def places(company: Company, canary: str) -> set[str]:
    """Every table with a row that holds a text, binary columns included."""
    columns = await company.pool.fetch(
        "SELECT c.table_name, c.column_name, c.data_type FROM information_schema.columns c"
        " JOIN information_schema.tables t USING (table_schema, table_name)"
        " WHERE c.table_schema = 'public' AND t.table_type = 'BASE TABLE'"
    )
    assert len({row["table_name"] for row in columns}) > 10
    found = set()
    for table, column, kind in columns:
        text = f"encode(\"{column}\", 'escape')" if kind == "bytea" else f'"{column}"::text'
        where = f"position($1 in {text}) > 0"
        if table == "model_calls":
            where += f" AND node <> ALL (ARRAY{list(SEES_FILES)})"
        if await company.pool.fetchval(f'SELECT count(*) FROM "{table}" WHERE {where}', canary):  # noqa: S608 - names
            found.add(f"{table}.{column}")
    return found


async def test_what_a_scanner_found_is_repeated_nowhere(talkative: tuple[Company, Talkative]) -> None:
    company, people = talkative
    made = people.changes["bye"]
    people.changes["bye"] = lambda visit: [*made(visit), call("write_file", path="key.py", content=LEAK)]
    clean = call("write_file", path="key.py", content="X = 1\n")
    people.changes["security"] = lambda visit: [clean]
    run_id = await begin(company, "qa", "docs", "devops", security={"max_iterations": 1})
    assert await status(company, run_id) == "COMPLETED"
    rules = {row[0] for row in await company.pool.fetch("SELECT rule FROM findings WHERE run_id = $1", run_id)}
    assert {"B105", "aws-access-key", "hard-coded-secret"} <= rules
    fixes = await company.pool.fetchval(
        "SELECT count(*) FROM tasks WHERE run_id = $1 AND key LIKE 'security-%' AND description LIKE '%***%'", run_id
    )
    assert fixes >= 1
    assert await company.pool.fetchval("SELECT count(*) FROM model_calls WHERE node = 'security_scan'") == 1
    for canary in CANARIES:
        # What a model replied is journalled as it was; nothing that is made of it holds the secret.
        assert await places(company, canary) == {"model_calls.response"}
