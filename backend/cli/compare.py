"""The command that shows two runs beside each other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from backend.cli.place import Company, do
from backend.cli.screen import screen
from backend.operations import comparisons, lookups, runs


def compare(first: str, second: str, *, as_json: bool) -> int:
    """Print both runs, and the diff from the first result to the second."""

    async def work(company: Company) -> dict[str, Any]:
        async with company.sessions() as session:
            found = [await runs.get(session, await lookups.run_named(session, name)) for name in (first, second)]
            return await comparisons.of_runs(session, *found, home=company.settings.home)

    facts = do(work)
    if as_json:
        print(json.dumps(facts, ensure_ascii=False, indent=2))  # noqa: T201 - the output that was asked for
        return 0
    console = screen()
    sides = [_lines(side) for side in facts["runs"]]
    table = Table("", *(f"run {side['number']}" for side in facts["runs"]), box=box.SIMPLE_HEAD, pad_edge=False)
    for name in sides[0]:
        table.add_row(name, *(Text(side[name]) for side in sides))
    console.print(table)
    stat = facts["diff_stat"]
    told = facts["no_diff"] or f"{stat['files']} files differ, {stat['added']} lines added, {stat['removed']} removed."
    console.print(Text(told))
    if facts["diff"]:
        console.print(Text(facts["diff"]), soft_wrap=True)
    return 0


def _lines(side: Mapping[str, Any]) -> dict[str, str]:
    spent, tests = side["spent"], side["tests"]
    findings = (f"{found['count']} {found['severity']} {found['status']}" for found in side["findings_by"])
    gates = {gate["gate"]: gate["decision"] for gate in side["gates"]}
    return {
        "id": side["run_id"][:13],
        "status": side["status"],
        "USD": spent["usd"],
        "tokens": f"{spent['tokens']:,}",
        "seconds": f"{float(spent['seconds']):.1f}",
        "model calls": str(spent["model_calls"]),
        "tasks": ", ".join(f"{count} {status}" for status, count in side["tasks"].items()) or "none",
        "findings": ", ".join(findings) or "none",
        "tests": f"{tests['passed']} passed, {tests['failed']} failed" if tests else "none ran",
        "gates": ", ".join(f"{gate}: {decision}" for gate, decision in gates.items()) or "none",
    }
