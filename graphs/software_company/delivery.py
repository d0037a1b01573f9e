"""Documents and deployment files: written by roles, compared with the code and judged by linters and scanners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from langgraph.runtime import Runtime

from backend.agents import devops, docs
from backend.agents.desk import Desk
from backend.agents.loop import Work
from backend.agents.security import listed
from backend.domain import effect as effects
from backend.domain import gates, remit
from backend.domain.board import order
from backend.domain.comment import CommentType
from backend.domain.document import Repository, misfits
from backend.domain.effect import Effect
from backend.domain.finding import FindingSource, Severity, fingerprint
from backend.domain.gates import Gate, Verdict
from backend.domain.ports import Diff, RunContext, ScanFinding, ScanReport, Visit, Worktree
from backend.domain.question import ExpiryAction, QuestionKind
from backend.domain.role import Role
from graphs.software_company import trail
from graphs.software_company.state import CompanyState, Update

READ = 300
"""Files that are read to compare documents with the code."""
_NO_SCAN = ScanReport((), ())


async def docs_finalize(state: CompanyState, runtime: Runtime[RunContext]) -> Update:
    """Let the writer document what was built; what the documents name must exist."""
    context, number = runtime.context, trail.next_visit(state, "docs_finalize")
    base: Update = {"visits": {"docs_finalize": number}}
    if not trail.is_on(context, Role.DOCS):
        trail.enter(context, "docs_finalize", number)
        verdict = gates.switched_off(Gate.DOCS, Role.DOCS)
        recorded = [*trail.verdict(verdict), trail.progress(state, "docs_finalize")]
        return base | {"gates": trail.as_state(verdict), "effects": recorded}
    if state.get("prepared", {}).get("docs") == state["head"]:
        trail.enter(context, "docs_finalize", number)
        return base | {"effects": [trail.progress(state, "docs_finalize")]}
    tree = await context.workspace.checkout("docs", state["head"])
    desk = trail.desk(context, Role.DOCS, Visit("docs_finalize", number), tree)

    async def finish() -> str | None:
        commit, diff = await _commit(context, desk, tree, "Draft", state["head"])
        strays = remit.objection(Role.DOCS, (file.path for file in diff.files))
        problems = await _problems(context, commit)
        return strays or (f"These statements do not fit:\n{trail.bullets(problems[:30])}" if problems else None)

    specs = [state["specs"][key] for key in order(state["specs"])]
    outline = await context.workspace.outline(state["head"])
    work = await docs.write(desk, brief=context.run.brief, tasks=specs, outline=outline, finish=finish)
    head, diff = await _final(context, desk, tree, work, state["head"])
    problems = await _problems(context, head)
    verdict = gates.docs(problems)
    recorded = [_made(desk, CommentType.DOCS, work, diff, verdict, {"misfits": len(problems)})]
    recorded += [*_misfit_findings(problems), *trail.verdict(verdict), trail.progress(state, "docs_finalize")]
    return base | _moved(state, Role.DOCS, "docs", head, verdict, recorded)


async def devops_prepare(state: CompanyState, runtime: Runtime[RunContext]) -> Update:
    """Let devops write deployment files; linters judge them, and everything is scanned again."""
    context, number = runtime.context, trail.next_visit(state, "devops_prepare")
    base: Update = {"visits": {"devops_prepare": number}}
    if not trail.is_on(context, Role.DEVOPS):
        trail.enter(context, "devops_prepare", number)
        verdict = gates.switched_off(Gate.DEPLOY, Role.DEVOPS)
        recorded = [*trail.verdict(verdict), *_release_question(context, state, number, [verdict])]
        return base | {"gates": trail.as_state(verdict), "effects": recorded}
    if state.get("prepared", {}).get("devops") == state["head"]:
        trail.enter(context, "devops_prepare", number)
        return base | {"effects": _release_question(context, state, number, [])}
    tree = await context.workspace.checkout("devops", state["head"])
    desk = trail.desk(context, Role.DEVOPS, Visit("devops_prepare", number), tree)

    judged: dict[str, tuple[ScanReport, ScanReport]] = {}

    async def finish() -> str | None:
        commit, diff = await _commit(context, desk, tree, "Draft", state["head"])
        strays = remit.objection(Role.DEVOPS, (file.path for file in diff.files), state.get("accepted_tests", {}))
        judged[diff.text] = await _judge(context, commit)
        found = [f for f in _faults(context, *judged[diff.text]) if f.severity.rank >= Severity.LOW.rank]
        return strays or (f"Linters and scanners found:\n{listed(found[:40])}" if found else None)

    before = (await context.checks.lint_deploy(state["head"], context.run.config.checks)).findings
    outline = await context.workspace.outline(state["head"])
    work = await devops.prepare(desk, brief=context.run.brief, outline=outline, findings=before, finish=finish)
    head, diff = await _final(context, desk, tree, work, state["head"])
    # A diff that was cut may hide a difference; what was judged whole need not be judged again.
    known = judged.get(diff.text) if diff.files and not diff.truncated else None
    lint, scan = known or await _judge(context, head)
    verdict, safe = gates.deploy(lint), _safe(context, scan)
    recorded = [_made(desk, CommentType.DEVOPS, work, diff, verdict, _linters(lint))]
    recorded += [*trail.scan_findings(FindingSource.DEVOPS, lint.findings)]
    recorded.append(effects.close_findings(FindingSource.DEVOPS, (f.fingerprint for f in lint.findings)))
    recorded += _scanned(scan) if safe else []
    recorded += [*trail.verdict(verdict), *(trail.verdict(safe) if safe else [])]
    recorded += _release_question(context, state, number, [verdict, *([safe] if safe else [])])
    recorded.append(trail.progress(state, "devops_prepare"))
    update = base | _moved(state, Role.DEVOPS, "devops", head, verdict, recorded)
    update["gates"] = {**update["gates"], **(trail.as_state(safe) if safe else {})}
    return update


async def _judge(context: RunContext, commit: str) -> tuple[ScanReport, ScanReport]:
    """Lint the deployment files and scan everything that will be delivered."""
    lint = await context.checks.lint_deploy(commit, context.run.config.checks)
    if not trail.is_on(context, Role.SECURITY):
        return lint, _NO_SCAN
    return lint, await context.checks.scan(commit, context.run.config.checks)


def _safe(context: RunContext, scan: ScanReport) -> Verdict | None:
    """The security verdict on what is delivered; no fix round follows this one, so what blocks ends the run."""
    if not trail.is_on(context, Role.SECURITY):
        return None
    config = context.run.config.security
    return gates.security(config, scan, iteration=config.max_iterations, waived=context.waived)


def _faults(context: RunContext, lint: ScanReport, scan: ScanReport) -> list[ScanFinding]:
    return [*lint.findings, *gates.blocking(context.run.config.security.gate, scan.findings, context.waived)]


async def _commit(context: RunContext, desk: Desk, tree: Worktree, summary: str, before: str) -> tuple[str, Diff]:
    commit = await context.workspace.commit(
        tree,
        author=desk.role,
        message=f"{desk.role}: {trail.first_line(summary)}\n\n{summary}".strip(),
        trailers=trail.trailers(context, desk.role, desk.meter),
    )
    return commit, await context.workspace.diff(before, commit)


async def _final(context: RunContext, desk: Desk, tree: Worktree, work: Work, before: str) -> tuple[str, Diff]:
    """Commit the work, or nothing of it where it still touches what is not the role's to change."""
    commit, diff = await _commit(context, desk, tree, work.summary or work.why, before)
    await context.workspace.release(str(desk.role))
    if remit.outside(desk.role, (file.path for file in diff.files)):
        return before, Diff("", ())
    return commit, diff


async def _problems(context: RunContext, commit: str) -> list[str]:
    files = await context.workspace.files(commit)
    texts = {path: await context.workspace.read(commit, path, limit=200_000) or "" for path in files[:READ]}
    documents = {path: text for path, text in texts.items() if not remit.outside(Role.DOCS, [path])}
    code = {path: text for path, text in texts.items() if path not in documents}
    return misfits(documents, Repository(files, code))


def _misfit_findings(problems: Sequence[str]) -> list[Effect]:
    recorded = []
    for problem in problems:
        path = problem.partition(":")[0]
        name = fingerprint("documents", "misfit", path, problem)
        recorded.append(
            effects.record_finding(
                name,
                source=FindingSource.REVIEW,
                scanner="documents",
                rule="misfit",
                severity=Severity.LOW,
                message=problem,
                path=path,
            )
        )
    return recorded


def _made(
    desk: Desk, kind: CommentType, work: Work, diff: Diff, verdict: Verdict, more: Mapping[str, object]
) -> Effect:
    return effects.add_comment(
        desk.role,
        kind,
        (work.summary or work.why) + trail.section("Files", (f"`{file.path}`" for file in diff.files[:40])),
        metrics=trail.metrics(desk.meter, steps=work.steps, tools=work.tools, files=len(diff.files), **more),
        blockers=[] if verdict.goes_on else [verdict.reason],
        rationale=verdict.reason,
    )


def _moved(state: CompanyState, role: Role, name: str, head: str, verdict: Verdict, recorded: list[Effect]) -> Update:
    made = [trail.commit_made(head, role=role)] if head != state["head"] else []
    return {
        "head": head,
        "prepared": {name: head},
        "gates": trail.as_state(verdict),
        "effects": [*made, *recorded],
    }


def _linters(lint: ScanReport) -> dict[str, object]:
    return {
        "linters": {run.scanner: run.failed or f"{run.files_scanned} files" for run in lint.scanners},
        "remarks": len(lint.findings),
    }


def _scanned(scan: ScanReport) -> list[Effect]:
    names = (found.fingerprint for found in scan.findings)
    return [
        *trail.scan_findings(FindingSource.SECURITY, scan.findings),
        effects.close_findings(FindingSource.SECURITY, names),
    ]


def _release_question(
    context: RunContext, state: CompanyState, number: int, verdicts: Sequence[Verdict]
) -> list[Effect]:
    """Ask for the release, if people want to be asked and there is something to release."""
    people = context.run.config.people
    judged = {str(verdict.gate) for verdict in verdicts} | {str(Gate.RELEASE)}
    before = (gate["decision"] for name, gate in state.get("gates", {}).items() if name not in judged)
    fine = all(verdict.goes_on for verdict in verdicts) and all(word in gates.GOES_ON for word in before)
    if not people.approve_release or not fine:
        return []
    return [
        effects.ask_question(
            f"release-{number}",
            QuestionKind.APPROVAL,
            "Every gate let the work through. Shall it be released? Answer approve, reject, or what should change.",
            asked_by=Role.PM,
            default="approve",
            due_seconds=people.due_seconds,
            on_expiry=ExpiryAction(people.on_expiry),
        )
    ]
