"""The product manager: reads a brief, plans tasks, reports the end. Structured replies only, no tools."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from backend.agents.desk import Desk
from backend.agents.reply import Form, structured
from backend.domain import plan as plans
from backend.domain.plan import Analysis, Plan
from backend.domain.report import Report


async def analyze(desk: Desk, *, project: str, brief: str, may_ask: bool) -> Analysis:
    """Say what the brief asks for; questions are dropped where nobody may be asked."""
    begin = desk.prompts.opening("pm_analyze", project=project, brief=brief, may_ask=may_ask)
    found = await structured(desk, begin, Form("analysis", "what the brief asks for.", Analysis))
    return found if may_ask else found.model_copy(update={"questions": ()})


async def plan(
    desk: Desk,
    *,
    brief: str,
    analysis: Mapping[str, Any],
    answers: Mapping[str, str],
    change: str = "",
    previous: str = "",
) -> Plan:
    """Turn an analysis into tasks without cycles; `change` is what a person asks to be different from `previous`."""
    begin = desk.prompts.opening(
        "pm_plan",
        brief=brief,
        analysis=_json(analysis),
        answers="\n".join(f"{question}\n  -> {answers[question]}" for question in sorted(answers)),
        change=change,
        previous=previous,
        max_tasks=plans.MAX_TASKS,
    )
    return await structured(desk, begin, Form("plan", "the tasks and how they fit together.", Plan, plans.faults))


async def report(desk: Desk, *, brief: str, facts: Mapping[str, Any]) -> Report:
    """Tell the person who wrote the brief what came of it; the facts are not the model's to change."""
    begin = desk.prompts.opening("pm_report", brief=brief, facts=_json(facts))
    return await structured(desk, begin, Form("report", "what came of the brief.", Report))


def _json(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, indent=1, sort_keys=True, ensure_ascii=False)
