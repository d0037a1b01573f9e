"""The security node: real scanners over the head; what the gate blocks becomes fix tasks, explained by the role."""

from __future__ import annotations

from collections.abc import Sequence

from langgraph.runtime import Runtime

from backend.agents import security
from backend.agents.desk import Meter
from backend.domain import effect as effects
from backend.domain import gates
from backend.domain.board import TaskSpec, follow_up, new_card, next_round
from backend.domain.comment import CommentType
from backend.domain.effect import Effect
from backend.domain.finding import FindingSource
from backend.domain.gates import Decision, Gate, Verdict
from backend.domain.ports import RunContext, ScanFinding, ScannerRun, ScanReport, Visit
from backend.domain.role import Role
from backend.domain.secret import masked
from backend.domain.task import TaskKind
from backend.domain.triage import Triage
from graphs.software_company import trail
from graphs.software_company.state import CompanyState, Safety, Update

FIXES = 5
"""Fix tasks of one visit: one for each file with findings, the last for all that are left."""


async def security_scan(state: CompanyState, runtime: Runtime[RunContext]) -> Update:
    """Scan the head, have what blocks explained, and judge by what the scanners say."""
    context, number = runtime.context, trail.next_visit(state, "security_scan")
    if not trail.is_on(context, Role.SECURITY):
        trail.enter(context, "security_scan", number)
        verdict = gates.switched_off(Gate.SECURITY, Role.SECURITY)
        recorded = [*trail.verdict(verdict), trail.progress(state, "security_scan")]
        return {"visits": {"security_scan": number}, "gates": trail.as_state(verdict), "effects": recorded}
    trail.enter(context, "security_scan", number)
    config, rounds = context.run.config.security, state.get("safety", {}).get("rounds", 0)
    report = await context.checks.scan(state["head"], context.run.config.checks)
    verdict = gates.security(config, report, iteration=rounds, waived=context.waived)
    blocked = gates.blocking(config.gate, report.findings, context.waived)
    triage, meter = await _explain(state, context, number, report, blocked)
    made = _fixes(state, blocked, report, triage) if verdict.decision is Decision.FIX else []
    known: Safety = {
        "rounds": rounds + (verdict.decision is Decision.FIX),
        "findings": len(report.findings),
        "blocking": len(blocked),
    }
    recorded = [
        *trail.scan_findings(FindingSource.SECURITY, report.findings),
        effects.close_findings(FindingSource.SECURITY, (found.fingerprint for found in report.findings)),
        _comment(report, blocked, triage, meter, verdict),
        *trail.verdict(verdict),
        *(trail.create(spec) for spec in made),
        trail.progress(state, "security_scan"),
    ]
    return {
        "visits": {"security_scan": number},
        "safety": known,
        "gates": trail.as_state(verdict),
        "specs": {spec["key"]: spec for spec in made},
        "board": {spec["key"]: new_card() for spec in made},
        "effects": recorded,
    }


async def _explain(
    state: CompanyState, context: RunContext, number: int, report: ScanReport, blocked: Sequence[ScanFinding]
) -> tuple[Triage | None, Meter]:
    """Ask the role only where something blocks; it cannot change what the gate sees."""
    if not blocked:
        return None, Meter()
    tree = await context.workspace.checkout("security", state["head"])
    desk = trail.desk(context, Role.SECURITY, Visit("security_scan", number), tree, kind=TaskKind.SECURITY)
    others = [found for found in report.findings if found not in blocked]
    triage = await security.triage(desk, blocking=blocked, others=others)
    await context.workspace.release("security")
    return _discreet(triage, report), desk.meter


def _discreet(triage: Triage, report: ScanReport) -> Triage:
    """The triage without the secrets that the role saw in the files: tasks and comments are kept and read by many."""
    entries = tuple(
        entry.model_copy(
            update={
                "explanation": masked(entry.explanation, report.secrets),
                "proposal": masked(entry.proposal, report.secrets),
            }
        )
        for entry in triage.findings
    )
    return triage.model_copy(update={"summary": masked(triage.summary, report.secrets), "findings": entries})


def _fixes(
    state: CompanyState, blocked: Sequence[ScanFinding], report: ScanReport, triage: Triage | None
) -> list[TaskSpec]:
    by_file: dict[str, list[ScanFinding]] = {}
    for found in security.worst_first(blocked):
        name = found.path or "the dependencies"
        by_file.setdefault(name if len(by_file) < FIXES or name in by_file else list(by_file)[-1], []).append(found)
    first, number, made = len(state["specs"]) + 1, next_round(state["specs"], "security"), []
    for at, (name, entries) in enumerate(sorted(by_file.items(), key=lambda item: _rank(item[1], triage)), 1):
        made.append(
            follow_up(
                f"security-{number}-{at}",
                first + at - 1,
                title=f"Mend {len(entries)} security finding{'s' if len(entries) > 1 else ''} in {name}",
                kind=TaskKind.SECURITY,
                description=_explained(entries, triage),
                criteria=[f"{found.scanner} {found.rule} finds nothing in {name}."[:500] for found in entries[:12]],
            )
        )
    for run in gates.blind(report):
        made.append(_unblind(f"security-{number}-{len(made) + 1}", first + len(made), run))
    return made


def _unblind(key: str, number: int, run: ScannerRun) -> TaskSpec:
    return follow_up(
        key,
        number,
        title=f"Let {run.scanner} read every file",
        kind=TaskKind.SECURITY,
        description=run.failed or f"It read {run.files_scanned} of {run.files_expected} files.",
        criteria=[f"{run.scanner} reads every file of the repository."],
    )


def _rank(entries: Sequence[ScanFinding], triage: Triage | None) -> tuple[int, str]:
    ranks = {found.fingerprint: found.rank for found in triage.findings} if triage else {}
    return min(ranks.get(entry.fingerprint, 50) for entry in entries), entries[0].path or ""


def _explained(entries: Sequence[ScanFinding], triage: Triage | None) -> str:
    words = {found.fingerprint: found for found in triage.findings} if triage else {}
    parts = []
    for entry in entries[:20]:
        text = f"{entry.severity} {entry.path or ''}:{entry.line or '-'} [{entry.scanner} {entry.rule}] {entry.message}"
        word = words.get(entry.fingerprint)
        parts.append(f"{text}\n{word.explanation}\nProposal: {word.proposal}" if word else text)
    return "\n\n".join(parts)[:6000]


def _comment(
    report: ScanReport, blocked: Sequence[ScanFinding], triage: Triage | None, meter: Meter, verdict: Verdict
) -> Effect:
    shown = security.worst_first(report.findings)
    lines = (f"{f.severity} `{f.path or '-'}:{f.line or '-'}` {f.rule}: {f.message}" for f in shown[:30])
    counts: dict[str, int] = {}
    for found in report.findings:
        counts[str(found.severity)] = counts.get(str(found.severity), 0) + 1
    scanners = (f"{run.scanner} {run.version}: {run.failed or f'{run.files_scanned} files'}" for run in report.scanners)
    return effects.add_comment(
        Role.SECURITY,
        CommentType.SECURITY_REPORT,
        (triage.summary if triage else verdict.reason)
        + trail.section("Findings", lines)
        + trail.section("Scanners", scanners),
        metrics=trail.metrics(meter, findings=len(report.findings), blocking=len(blocked), by_severity=counts),
        blockers=[found.message for found in blocked[:10]] if not verdict.goes_on else [],
        next_steps=["Mend what blocks, then test and scan again."] if verdict.decision is Decision.FIX else [],
        rationale=verdict.reason,
    )
