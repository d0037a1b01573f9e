"""A run that was recorded and is played again: the same trees, rows, calls and spend, as a person reads them."""

from __future__ import annotations

import os
import re
import subprocess
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from backend.adapters.llm.gateway import Gateway
from backend.engine.workbench import workbenches
from backend.operations import recordings
from backend.settings import Settings
from tests.integration.engine.conftest import Company
from tests.openai_server import OpenAIServer
from tests.small_company import BRIEF, SmallCompany, Turn

_SHOWN = {
    "run": "SELECT status, stop_reason, progress, spent_tokens_input, spent_tokens_output, spent_tokens_cached,"
    " model_calls FROM project_runs WHERE id = $1",
    "tasks": "SELECT key, title, kind, status, assigned_role, iteration, acceptance_criteria::text, description"
    " FROM tasks WHERE run_id = $1 ORDER BY key",
    "comments": "SELECT node, visit, author_name, comment_type, body, rationale, next_steps::text FROM task_comments"
    " WHERE run_id = $1 ORDER BY 1, 2, 3, 4, 5",
    "findings": "SELECT source, scanner, rule, severity, path, line, message, fingerprint, status FROM findings"
    " WHERE run_id = $1 ORDER BY 1, 2, 3, 5, 6, 8",
    "calls": "SELECT node, visit, ordinal, role, task_key, tokens_input, tokens_output, tokens_cached,"
    " response ->> 'content', response ->> 'finish_reason' FROM model_calls WHERE run_id = $1 ORDER BY 1, 2, 3",
    "tools": "SELECT node, visit, ordinal, call ->> 'name', call ->> 'arguments' FROM model_calls,"
    " jsonb_array_elements(response -> 'tool_calls') call WHERE run_id = $1 ORDER BY 1, 2, 3, 4, 5",
    "events": "SELECT type, count(*) FROM events WHERE run_id = $1 GROUP BY 1 ORDER BY 1",
}
FULL = os.environ.get("COMPANY_TEST_CHAOS") == "full"
"""All seats, or those whose work takes little of the machine."""
_DIFFERS = re.compile(r"\b(?:[0-9a-f]{40}|[0-9a-f]{10}|[0-9a-f]{12})\b|\b\d+\.\d+ ?s\b")
"""Commits name their run in a trailer, and tests take their time."""


class Hurried(SmallCompany):
    """Developers of whom only the last runs its tests."""

    def _develop(self, key: str) -> tuple[Turn, ...]:
        turns = super()._develop(key)
        return turns if key == "cli" or FULL else tuple(turn for turn in turns if turn != (("run_tests", {}),))


async def _read(company: Company, run_id: UUID, home: Path) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for name, query in _SHOWN.items():
        rows = await company.pool.fetch(query, run_id)
        shown[name] = [tuple(_DIFFERS.sub("…", str(value)) for value in row) for row in rows]
    project = await company.pool.fetchval("SELECT project_id FROM project_runs WHERE id = $1", run_id)
    shown["trees"] = subprocess.run(
        ["git", f"--git-dir={home}/repositories/{project}.git", "log", "--first-parent", "--format=%T %s", "main"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    return shown


async def test_a_recorded_run_of_the_company_plays_again_tree_by_tree_and_row_by_row(
    company: Company, tmp_path: Path
) -> None:
    gateway = Gateway(Settings(home=tmp_path, redis_url=None))
    company.transport = gateway  # type: ignore[assignment] # the real one where the scripted one stood
    company.executor = company.worker("tape", lease_seconds=60)
    company.executor.workbenches = workbenches(Settings(home=tmp_path, redis_url=None))
    firm: dict[str, Any] = {
        "graph": "software_company",
        "parallelism": 1,
        "roles": {role: {"enabled": FULL} for role in ("qa", "docs", "devops")},
        "security": {"gate": "warn"},
        "checks": {"scanners": ["secret-rules"], "linters": []},
        "sandbox": {"level": "unsafe"},
    }
    with OpenAIServer(Hurried(leaks=True)) as server:
        over_http = {"provider": "loop", "default": "gpt-4o", "providers": {"loop": {"base_url": server.base_url}}}
        first = await company.run(brief=BRIEF, **firm, models=over_http)
        await company.executor.execute(first)
    async with company.sessions() as session:
        written = await recordings.record(session, first)
    (tmp_path / "recordings").mkdir()
    (tmp_path / "recordings" / "mine.yaml").write_text(written, "utf-8")
    tape = {"provider": "tape", "providers": {"tape": {"kind": "replay", "recording": "mine"}}}
    second = await company.run(brief=BRIEF, **firm, models=tape)
    await company.executor.execute(second)
    await gateway.close()

    played, made = await _read(company, second, tmp_path), await _read(company, first, tmp_path)
    assert made["run"][0][0] == "COMPLETED", (await company.row(first))["error"]
    assert made["findings"] and len(made["trees"]) >= 4
    for part, rows in made.items():
        assert played[part] == rows, part
    cost = (await company.row(first))["spent_usd"]
    replayed = await company.pool.fetchrow(
        "SELECT sum((response #>> '{marks,recorded_cost_usd}')::numeric) AS recorded, sum(cost_usd) AS paid"
        " FROM model_calls WHERE run_id = $1",
        second,
    )
    assert (replayed["recorded"], replayed["paid"]) == (cost, Decimal(0))
    async with company.sessions() as session:
        again = await recordings.record(session, second)
    assert again == written, "what is recorded of the replay is the recording"
    for run_id in (first, second):
        await company.check(run_id)
