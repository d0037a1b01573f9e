"""QA's node: tests from acceptance criteria, really run; failures become bug tasks.

The verdict follows from what the programs report. QA writes tests once for each task; when accepted tests still fail
after a fix round, it looks again whether the test or the code is wrong, and the programs decide again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from langgraph.runtime import Runtime

from backend.agents import qa
from backend.agents.desk import Meter
from backend.agents.history import steady
from backend.domain import effect as effects
from backend.domain import gates, remit
from backend.domain.board import TaskSpec, follow_up, new_card, next_round, order
from backend.domain.comment import CommentType
from backend.domain.effect import Effect
from backend.domain.finding import FindingSource, Severity, fingerprint
from backend.domain.gates import Decision, Gate, Verdict
from backend.domain.plan import RESERVED, criteria_named, criterion_id
from backend.domain.ports import Diff, RunContext, TestCase, TestReport, Visit, Worktree
from backend.domain.report import untested
from backend.domain.role import Role
from backend.domain.task import TaskKind
from graphs.software_company import trail
from graphs.software_company.state import CompanyState, Qa, Update

BUGS = 5
"""Bug tasks of one visit: one for each test file that fails, the last for all that are left."""


@dataclass(slots=True)
class _Visit:
    """One visit of QA: where the repository stands and what was accepted, as they become."""

    context: RunContext
    state: CompanyState
    number: int
    head: str
    accepted: dict[str, str]
    known: Qa
    changed: dict[str, str | None] = field(default_factory=dict)
    effects: list[Effect] = field(default_factory=list)
    meter: Meter = field(default_factory=Meter)
    said: str = ""

    @property
    def specs(self) -> dict[str, TaskSpec]:
        return self.state["specs"]


async def qa_test(state: CompanyState, runtime: Runtime[RunContext]) -> Update:
    """Write the tests that are missing, run all of them, and judge by what the programs say."""
    context, number = runtime.context, trail.next_visit(state, "qa_test")
    if not trail.is_on(context, Role.QA):
        trail.enter(context, "qa_test", number)
        verdict = gates.switched_off(Gate.QA, Role.QA)
        recorded = [*trail.verdict(verdict), trail.progress(state, "qa_test")]
        return {"visits": {"qa_test": number}, "gates": trail.as_state(verdict), "effects": recorded}
    visit = _Visit(context, state, number, state["head"], dict(state.get("accepted_tests", {})), state.get("qa", {}))
    report = await _tested(visit)
    rounds, passed = visit.known.get("rounds", 0), sum(case.outcome == "passed" for case in report.cases)
    verdict = gates.qa(
        context.run.config.qa, iteration=rounds, green=report.green, reasons=report.reasons, passed=passed
    )
    gaps = await _gaps(visit)
    made = _bugs(visit, report) if verdict.decision is Decision.FIX else []
    known: Qa = {
        "rounds": rounds + (verdict.decision is Decision.FIX),
        "covered": sorted({*visit.known.get("covered", []), *(spec["key"] for spec in _to_cover(visit))}),
        "failures": [_failure(case) for case in _failed(report)],
        "passed": passed,
        "failed": len(_failed(report)),
        "coverage": report.coverage,
        "untested": gaps,
    }
    recorded = [*visit.effects, _comment(visit, report, verdict, gaps), *_findings(report), *trail.verdict(verdict)]
    recorded += [trail.create(spec) for spec in made]
    return {
        "visits": {"qa_test": number},
        "head": visit.head,
        "accepted_tests": visit.changed,
        "qa": known,
        "gates": trail.as_state(verdict),
        "specs": {spec["key"]: spec for spec in made},
        "board": {spec["key"]: new_card() for spec in made},
        "effects": [*recorded, trail.progress(state, "qa_test")],
    }


async def _tested(visit: _Visit) -> TestReport:
    await _restore(visit)
    missing = _to_cover(visit)
    report = None if missing else await _run(visit)
    if report is not None and (report.green or not visit.known.get("failures")):
        return report
    changed = await _write(visit, missing)
    return await _run(visit) if changed or report is None else report


async def _run(visit: _Visit) -> TestReport:
    return await visit.context.checks.test(visit.head, visit.context.run.config.checks, accepted_tests=visit.accepted)


def _to_cover(visit: _Visit) -> list[TaskSpec]:
    """The tasks whose criteria QA has not written tests for; bugs and fixes are proved by what found them."""
    covered = visit.known.get("covered", [])
    planned = (visit.specs[key] for key in sorted(visit.specs, key=lambda key: visit.specs[key]["number"]))
    made = tuple(prefix for prefix in RESERVED if prefix != "change-")
    return [spec for spec in planned if spec["key"] not in covered and not spec["key"].startswith(made)]


async def _restore(visit: _Visit) -> None:
    """Put accepted tests back that a developer changed; the gate runs their pristine copies anyway, and says so."""
    tampered = []
    for path in sorted(visit.accepted):
        text = await visit.context.workspace.read(visit.accepted[path], path)
        if text is not None and text != await visit.context.workspace.read(visit.head, path):
            tampered.append((path, text))
    if not tampered:
        return
    tree = await visit.context.workspace.checkout("qa", visit.head)
    toolbox = visit.context.seat(Visit("qa_test", visit.number)).toolbox(Role.QA, tree)
    for path, text in tampered:
        await toolbox.call("write_file", {"path": path, "content": text})
        name = fingerprint("qa", "accepted-test-changed", path, visit.head)
        visit.effects.append(
            effects.record_finding(
                name,
                source=FindingSource.REVIEW,
                scanner="qa",
                rule="accepted-test-changed",
                severity=Severity.MEDIUM,
                message="A developer changed a test that QA had accepted; it was put back.",
                path=path,
            )
        )
    await _commit(visit, tree, "Put accepted tests back")


async def _write(visit: _Visit, missing: Sequence[TaskSpec]) -> bool:
    """Let QA write or correct tests; return whether there is anything new to run."""
    before = visit.head
    tree = await visit.context.workspace.checkout("qa", before)
    desk = trail.desk(visit.context, Role.QA, Visit("qa_test", visit.number), tree)
    wanted = [criterion_id(spec["key"], at) for spec in missing for at in range(1, len(spec["criteria"]) + 1)]

    async def finish() -> str | None:
        diff = await _draft(visit, tree, before)
        strays = remit.objection(Role.QA, (file.path for file in diff[1].files))
        if strays:
            return strays
        gaps = untested(wanted, await _proved(visit.context, diff[0], [file.path for file in diff[1].files]))
        return f"These criteria have no test that names them: {', '.join(gaps[:30])}." if gaps else None

    work = await qa.write_tests(
        desk,
        brief=visit.context.run.brief,
        tasks=missing or [visit.specs[key] for key in order(visit.specs)],
        outline=await visit.context.workspace.outline(before),
        failures=[] if missing else visit.known.get("failures", []),
        summaries=_summaries(visit),
        finish=finish,
    )
    visit.meter, visit.said = desk.meter, work.summary or work.why
    diff = await _commit(visit, tree, work.summary)
    return bool(diff.files)


async def _draft(visit: _Visit, tree: Worktree, before: str) -> tuple[str, Diff]:
    commit = await visit.context.workspace.commit(tree, author=Role.QA, message="Draft", trailers={})
    return commit, await visit.context.workspace.diff(before, commit)


async def _commit(visit: _Visit, tree: Worktree, summary: str) -> Diff:
    """Commit QA's work without what is not its to change, and accept its tests."""
    workspace, before = visit.context.workspace, visit.head
    _, draft = await _draft(visit, tree, before)
    strays = remit.outside(Role.QA, (file.path for file in draft.files))
    toolbox = visit.context.seat(Visit("qa_test", visit.number)).toolbox(Role.QA, tree)
    for path in strays:
        old = await workspace.read(before, path)
        await toolbox.call(*(("delete_file", {"path": path}) if old is None else _rewrite(path, old)))
    commit = await workspace.commit(
        tree,
        author=Role.QA,
        message=f"qa: {trail.first_line(summary) or 'Write acceptance tests'}",
        trailers=trail.trailers(visit.context, Role.QA, visit.meter),
    )
    await workspace.release("qa")
    diff = await workspace.diff(before, commit)
    for file in diff.files:
        gone = await workspace.read(commit, file.path) is None
        visit.changed[file.path] = None if gone else commit
        visit.accepted.pop(file.path, None)
        visit.accepted |= {} if gone else {file.path: commit}
    if commit != before:
        visit.effects.append(trail.commit_made(commit, role=Role.QA))
    visit.head = commit
    return diff


def _rewrite(path: str, content: str) -> tuple[str, dict[str, str]]:
    return "write_file", {"path": path, "content": content}


async def _proved(context: RunContext, commit: str, paths: Sequence[str]) -> frozenset[str]:
    texts = [await context.workspace.read(commit, path) or "" for path in sorted(paths)]
    return frozenset().union(*(criteria_named(text) for text in texts))


async def _gaps(visit: _Visit) -> list[str]:
    """The criteria that no accepted test names, for the report."""
    specs = sorted(visit.specs.values(), key=lambda spec: spec["number"])
    named = [
        criterion_id(spec["key"], at)
        for spec in specs
        if not spec["key"].startswith(RESERVED)
        for at in range(1, len(spec["criteria"]) + 1)
    ]
    return untested(named, await _proved(visit.context, visit.head, list(visit.accepted)))


def _summaries(visit: _Visit) -> list[str]:
    board = visit.state["board"]
    bugs = [key for key in order(visit.specs) if visit.specs[key]["kind"] == TaskKind.BUG]
    return [f"{key}: {board[key].get('summary', '(nothing)')}" for key in bugs]


def _failed(report: TestReport) -> list[TestCase]:
    return [case for case in report.cases if case.outcome != "passed"]


def _failure(case: TestCase) -> str:
    return f"{case.id} ({case.outcome})\n{steady(case.message)[:1500]}".rstrip()


def _bugs(visit: _Visit, report: TestReport) -> list[TaskSpec]:
    """A task for each test file that fails, or one for a suite that failed as a whole."""
    by_file: dict[str, list[TestCase]] = {}
    for case in sorted(_failed(report), key=lambda case: case.id):
        name = case.id.partition("::")[0]
        by_file.setdefault(name if len(by_file) < BUGS or name in by_file else list(by_file)[-1], []).append(case)
    first, number = len(visit.specs) + 1, next_round(visit.specs, "bug")
    if not by_file:
        text = "\n".join([*report.reasons, steady(report.output)[-3000:]])
        return [_bug(f"bug-{number}-1", first, "Make the test suite pass", text, ["The whole test suite passes."])]
    made = []
    for at, (name, cases) in enumerate(by_file.items(), 1):
        title = f"{len(cases)} failing test{'s' if len(cases) > 1 else ''} in {name}"
        criteria = [f"The test {case.id} passes."[:500] for case in cases[:12]]
        text = "\n\n".join(_failure(case) for case in cases[:6])
        made.append(_bug(f"bug-{number}-{at}", first + at - 1, title, text[:6000], criteria))
    return made


def _bug(key: str, number: int, title: str, text: str, criteria: Sequence[str]) -> TaskSpec:
    return follow_up(key, number, title=title, kind=TaskKind.BUG, description=text, criteria=criteria)


def _findings(report: TestReport) -> list[Effect]:
    recorded, names = [], []
    for case in _failed(report):
        name = fingerprint("tests", case.outcome, case.id.partition("::")[0], case.id)
        names.append(name)
        recorded.append(
            effects.record_finding(
                name,
                source=FindingSource.QA,
                scanner="tests",
                rule=case.outcome,
                severity=Severity.HIGH,
                message=f"{case.id}: {trail.first_line(case.message, 400)}",
                path=case.id.partition("::")[0],
            )
        )
    return [*recorded, effects.close_findings(FindingSource.QA, names)]


def _comment(visit: _Visit, report: TestReport, verdict: Verdict, gaps: Sequence[str]) -> Effect:
    failed = _failed(report)
    fixes = verdict.decision is Decision.FIX
    body = "\n\n".join(filter(None, [visit.said, verdict.reason]))
    return effects.add_comment(
        Role.QA,
        CommentType.TEST_REPORT,
        body
        + trail.section("Not passed", (f"`{case.id}` {case.outcome}" for case in failed[:30]))
        + trail.section("Reasons", report.reasons[:10])
        + trail.section("Criteria that no accepted test names", gaps[:30]),
        metrics=trail.metrics(visit.meter, **_figures(report), accepted_test_files=len(visit.accepted)),
        blockers=list(report.reasons[:10]) if not verdict.goes_on else [],
        next_steps=["Mend the bugs, then test again."] if fixes else [],
        rationale=verdict.reason,
    )


def _figures(report: TestReport) -> Mapping[str, object]:
    return {
        "green": report.green,
        "tests": len(report.cases),
        "passed": sum(case.outcome == "passed" for case in report.cases),
        "exit_code": report.exit_code,
        "test_seconds": round(report.seconds, 3),
        "coverage": report.coverage,
        "command": report.command,
        "changed_accepted_tests": list(report.tampered),
    }
