"""The PM's nodes: read the brief, plan the tasks; and the repository they begin from.

Asking and using the answer are two nodes: questions of the analysis are answered when the plan is made, approval of the
plan when the repository is prepared.
"""

from __future__ import annotations

from langgraph.runtime import Runtime

from backend.agents import pm
from backend.domain import effect as effects
from backend.domain import gates
from backend.domain.board import TaskSpec, new_card, planned
from backend.domain.comment import CommentType
from backend.domain.effect import Effect
from backend.domain.gates import Decision, Gate
from backend.domain.plan import Analysis, Plan, in_order
from backend.domain.ports import RunContext, Visit
from backend.domain.question import ExpiryAction, QuestionKind
from backend.domain.role import Role
from graphs.software_company import trail
from graphs.software_company.state import CompanyState, Update

APPROVAL_ROUNDS = 5
"""Changes to a plan that may be asked for."""


async def pm_analyze_requirements(state: CompanyState, runtime: Runtime[RunContext]) -> Update:
    """Let the PM say what the brief asks for, and ask what only people can decide."""
    context, number = runtime.context, trail.next_visit(state, "pm_analyze_requirements")
    desk = trail.desk(context, Role.PM, Visit("pm_analyze_requirements", number))
    may_ask = context.run.config.people.may_ask
    found = await pm.analyze(desk, project=context.run.project_name, brief=context.run.brief, may_ask=may_ask)
    comment = effects.add_comment(
        Role.PM,
        CommentType.ANALYSIS,
        _analysis_text(found),
        metrics=trail.metrics(desk.meter, requirements=len(found.requirements), questions=len(found.questions)),
        blockers=[point.question for point in found.questions],
        next_steps=["Plan the tasks."],
        rationale="; ".join(found.assumptions) or None,
    )
    return {
        "visits": {"pm_analyze_requirements": number},
        "analysis": found.model_dump(mode="json"),
        "effects": [comment, *_questions(context, found), trail.progress(state, "pm_analyze_requirements")],
    }


async def pm_create_tasks(state: CompanyState, runtime: Runtime[RunContext]) -> Update:
    """Let the PM plan the tasks; people may have to approve the plan before its tasks exist."""
    context, number = runtime.context, trail.next_visit(state, "pm_create_tasks")
    desk = trail.desk(context, Role.PM, Visit("pm_create_tasks", number))
    plan = await pm.plan(
        desk,
        brief=context.run.brief,
        analysis=state["analysis"],
        answers=_answers(state, context),
        change=state.get("plan_change", ""),
        previous=_plan_text(Plan.model_validate(state["plan"])) if state.get("plan_change") else "",
    )
    specs = {task.key: planned(task, at) for at, task in enumerate(in_order(plan), 1)}
    approve = context.run.config.people.approve_plan
    comment = effects.add_comment(
        Role.PM,
        CommentType.PLAN,
        _plan_text(plan),
        metrics=trail.metrics(desk.meter, tasks=len(specs), criteria=sum(len(s["criteria"]) for s in specs.values())),
        next_steps=["A person approves the plan."] if approve else ["Prepare the repository and begin."],
        rationale=plan.approach,
    )
    recorded = [_approval_question(context, number, plan)] if approve else _creations(specs)
    return {
        "visits": {"pm_create_tasks": number},
        "plan": plan.model_dump(mode="json"),
        "plan_change": "",
        "effects": [comment, *recorded, trail.progress(state, "pm_create_tasks")],
    }


async def bootstrap_repo(state: CompanyState, runtime: Runtime[RunContext]) -> Update:
    """Prepare the repository and put the tasks on the board, once the plan is approved."""
    context, number = runtime.context, trail.next_visit(state, "bootstrap_repo")
    trail.enter(context, "bootstrap_repo", number)
    verdict, answer = _plan_verdict(state, context)
    recorded = trail.verdict(verdict) if context.run.config.people.approve_plan else []
    update: Update = {"visits": {"bootstrap_repo": number}, "gates": trail.as_state(verdict), "effects": recorded}
    if not verdict.goes_on:
        return update | {"plan_change": answer if verdict.decision is Decision.FIX else ""}
    base = await context.workspace.prepare(context.run.config.workspace)
    files = await context.workspace.files(base)
    plan = Plan.model_validate(state["plan"])
    specs = {task.key: planned(task, at) for at, task in enumerate(in_order(plan), 1)}
    if context.run.config.people.approve_plan:
        recorded += _creations(specs)
    recorded.append(
        effects.add_comment(
            Role.LEAD,
            CommentType.NOTE,
            f"The repository is ready at `{base[:12]}` with {len(files)} files.",
            metrics={"files": len(files), "tasks": len(specs)},
            next_steps=["Begin with the tasks that wait for nothing."],
        )
    )
    board = {key: new_card() for key in specs}
    recorded.append(trail.progress({**state, "board": board}, "bootstrap_repo"))
    return update | {"base": base, "head": base, "specs": specs, "board": board}


def _plan_verdict(state: CompanyState, context: RunContext) -> tuple[gates.Verdict, str]:
    if not context.run.config.people.approve_plan:
        return gates.approval(Gate.PLAN, None, rounds_left=0), ""
    asked = state["visits"]["pm_create_tasks"]
    answer = context.answers.get(f"plan-{asked}")
    text = answer.text if answer else "reject: nobody answered"
    by = answer.by if answer else "nobody"
    return gates.approval(Gate.PLAN, text, by=by, rounds_left=APPROVAL_ROUNDS - asked), text


def _questions(context: RunContext, analysis: Analysis) -> list[Effect]:
    people = context.run.config.people
    return [
        effects.ask_question(
            f"clarify-{at}",
            QuestionKind.CLARIFICATION,
            point.question,
            asked_by=Role.PM,
            options=point.options,
            default=point.default,
            due_seconds=people.due_seconds,
            on_expiry=ExpiryAction(people.on_expiry),
        )
        for at, point in enumerate(analysis.questions, 1)
    ]


def _answers(state: CompanyState, context: RunContext) -> dict[str, str]:
    asked = Analysis.model_validate(state["analysis"]).questions
    found = {}
    for at, point in enumerate(asked, 1):
        answer = context.answers.get(f"clarify-{at}")
        found[point.question] = answer.text if answer else point.default or "(nobody answered; decide yourself)"
    return found


def _approval_question(context: RunContext, number: int, plan: Plan) -> Effect:
    people = context.run.config.people
    return effects.ask_question(
        f"plan-{number}",
        QuestionKind.APPROVAL,
        f"Shall this plan be carried out? Answer approve, reject, or what should be different.\n\n{_plan_text(plan)}",
        asked_by=Role.PM,
        default="approve",
        due_seconds=people.due_seconds,
        on_expiry=ExpiryAction(people.on_expiry),
    )


def _creations(specs: dict[str, TaskSpec]) -> list[Effect]:
    return [trail.create(spec) for spec in sorted(specs.values(), key=lambda spec: spec["number"])]


def _analysis_text(found: Analysis) -> str:
    return (
        found.summary
        + trail.section("Requirements", found.requirements)
        + trail.section("Assumptions", found.assumptions)
        + trail.section("Risks", found.risks)
        + trail.section("Questions", (point.question for point in found.questions))
    )


def _plan_text(plan: Plan) -> str:
    parts = [plan.approach]
    for task in plan.tasks:
        after = f" (after {', '.join(task.depends_on)})" if task.depends_on else ""
        parts.append(f"**{task.key}: {task.title}**{after}\n\n{trail.bullets(task.acceptance_criteria)}")
    return "\n\n".join(parts)
