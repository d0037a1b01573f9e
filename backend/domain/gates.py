"""Gates: pure functions from facts to a verdict with a reason; no model's word is among the facts they trust.

Iterations count the fix rounds that were already made. A verdict becomes the event `gate.decided` and a comment.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from backend.domain.config import BudgetConfig, OnExceed, QaConfig, ReviewConfig, SecurityConfig, SecurityGate
from backend.domain.finding import Severity
from backend.domain.ports import ScanFinding, ScannerRun, ScanReport


class Gate(StrEnum):
    """The gates by name, as they stand in events and comments."""

    PLAN = "plan"
    REVIEW = "review"
    QA = "qa"
    SECURITY = "security"
    DOCS = "docs"
    DEPLOY = "deploy"
    RELEASE = "release"
    BUDGET = "budget"


class Decision(StrEnum):
    """What a gate says."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    """Go on."""
    OFF = "off"
    """Nobody sits at this gate; go on, and say so."""
    FIX = "fix"
    """Go back and mend it."""
    ACCEPT = "accept"
    """No rounds are left; go on with the findings on record, as configured."""
    FAIL = "fail"
    """No rounds are left; the run fails, as configured."""
    STOP = "stop"
    """The run ends here."""
    PAUSE = "pause"
    """The run holds and asks."""
    DEGRADE = "degrade"
    """Go on with the cheaper model."""


GOES_ON = frozenset({Decision.PASS, Decision.OFF, Decision.ACCEPT})
"""The decisions after which the run takes the straight way."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a gate decided and why, in one sentence."""

    gate: Gate
    decision: Decision
    reason: str

    @property
    def goes_on(self) -> bool:
        """Whether the run takes the straight way."""
        return self.decision in GOES_ON


_EXHAUSTED: Mapping[Literal["accept", "fail"], Decision] = {"accept": Decision.ACCEPT, "fail": Decision.FAIL}

BLOCKS_FROM: Mapping[SecurityGate, Severity | None] = {
    SecurityGate.OFF: None,
    SecurityGate.WARN: None,
    SecurityGate.BLOCK_CRITICAL: Severity.CRITICAL,
    SecurityGate.BLOCK_HIGH: Severity.HIGH,
    SecurityGate.BLOCK_ANY: Severity.INFO,
}
"""The severity from which on each setting blocks; None blocks nothing."""


def switched_off(gate: Gate, role: str) -> Verdict:
    """The verdict where the role of a gate is disabled."""
    return Verdict(
        gate, Decision.OFF, f"The role {role} is switched off in this run's settings, so nobody judged this."
    )


def review(config: ReviewConfig, *, iteration: int, approved: bool, issues: int) -> Verdict:
    """Judge a change by the lead's decision and the rounds that are left."""
    if approved:
        noted = f", {_count(issues, 'remark')} noted" if issues else ""
        return Verdict(Gate.REVIEW, Decision.PASS, f"The lead approved the change{noted}.")
    if iteration < config.max_iterations:
        left = config.max_iterations - iteration
        found = _count(issues, "issue")
        return Verdict(Gate.REVIEW, Decision.FIX, f"The lead found {found}; {_count(left, 'fix round')} left.")
    return _exhausted(Gate.REVIEW, config.on_exhausted, f"The lead still finds {_count(issues, 'issue')}", iteration)


def attempt(config: ReviewConfig, *, iteration: int, trouble: str) -> Verdict:
    """Judge a developer's visit that ended without a change that can be reviewed; there is nothing to accept."""
    if iteration < config.max_iterations:
        return Verdict(Gate.REVIEW, Decision.FIX, f"There is no change to review: {trouble}")
    tried = f"{_count(iteration, 'fix round')}"
    return Verdict(Gate.REVIEW, Decision.FAIL, f"There is no change to review after {tried}: {trouble}")


def qa(config: QaConfig, *, iteration: int, green: bool, reasons: Sequence[str], passed: int) -> Verdict:
    """Judge a test run by what the programs reported."""
    if green:
        return Verdict(Gate.QA, Decision.PASS, f"The tests really ran and {_count(passed, 'test')} passed.")
    why = reasons[0].rstrip(".") if reasons else "The tests did not pass"
    if iteration < config.max_iterations:
        return Verdict(Gate.QA, Decision.FIX, f"{why}; {_count(config.max_iterations - iteration, 'fix round')} left.")
    return _exhausted(Gate.QA, config.on_exhausted, why, iteration)


def blocking(
    gate: SecurityGate, findings: Iterable[ScanFinding], waived: Collection[str] = ()
) -> tuple[ScanFinding, ...]:
    """Return the findings that the gate does not let through, in their order; waived ones do not block."""
    floor = BLOCKS_FROM[gate]
    if floor is None:
        return ()
    return tuple(found for found in findings if found.severity.rank >= floor.rank and found.fingerprint not in waived)


def blind(report: ScanReport) -> tuple[ScannerRun, ...]:
    """Return the scanners whose silence means nothing: they failed, or did not see every file."""
    return tuple(run for run in report.scanners if run.failed is not None or run.files_scanned < run.files_expected)


def mendable(run: ScannerRun) -> bool:
    """Whether a failed scanner fails over a file (which can be mended) and not over itself (which cannot)."""
    return 0 < run.files_scanned < run.files_expected


def security(config: SecurityConfig, report: ScanReport, *, iteration: int, waived: Collection[str] = ()) -> Verdict:
    """Judge a scan: blocking findings or a blind scanner stop the way; it fails closed."""
    failed, blocked = blind(report), blocking(config.gate, report.findings, waived)
    seen = f"{_count(len(report.findings), 'finding')} in all"
    if BLOCKS_FROM[config.gate] is None:
        unseen = f", {_count(len(failed), 'scanner')} failed" if failed else ""
        return Verdict(Gate.SECURITY, Decision.PASS, f"The gate is {config.gate} and blocks nothing; {seen}{unseen}.")
    if not failed and not blocked:
        return Verdict(Gate.SECURITY, Decision.PASS, f"Nothing that {config.gate} blocks was found; {seen}.")
    why = _security_reason(config.gate, failed, blocked)
    if any(not mendable(run) for run in failed):
        return Verdict(Gate.SECURITY, Decision.STOP, f"{why}; no change to the code can mend that.")
    if iteration < config.max_iterations:
        return Verdict(
            Gate.SECURITY, Decision.FIX, f"{why}; {_count(config.max_iterations - iteration, 'fix round')} left."
        )
    return Verdict(Gate.SECURITY, Decision.STOP, f"{why}, and no fix round is left.")


def docs(problems: Sequence[str]) -> Verdict:
    """Judge documents by whether what they name exists; misfits are accepted as findings."""
    if not problems:
        return Verdict(Gate.DOCS, Decision.PASS, "Every path, command and name that the documents mention exists.")
    return Verdict(Gate.DOCS, Decision.ACCEPT, f"{_count(len(problems), 'statement')} of the documents do not fit.")


def deploy(report: ScanReport) -> Verdict:
    """Judge deployment files by their linters: what is HIGH or worse, or a linter that failed, fails the run."""
    failed = blind(report)
    bad = [found for found in report.findings if found.severity.rank >= Severity.HIGH.rank]
    judges = ", ".join(run.scanner for run in report.scanners) or "no linter, since there are no such files"
    if failed:
        why = failed[0].failed or "it did not see every file"
        return Verdict(Gate.DEPLOY, Decision.FAIL, f"{failed[0].scanner} could not judge the files: {why}")
    if bad:
        return Verdict(Gate.DEPLOY, Decision.FAIL, f"{_count(len(bad), 'serious fault')} left; judged by {judges}.")
    if report.findings:
        return Verdict(Gate.DEPLOY, Decision.ACCEPT, f"{_count(len(report.findings), 'remark')} left; by {judges}.")
    return Verdict(Gate.DEPLOY, Decision.PASS, f"The deployment files are sound; judged by {judges}.")


def approval(gate: Gate, answer: str | None, *, by: str = "", rounds_left: int) -> Verdict:
    """Judge a person's answer: `approve` goes on, `reject` stops, any other text asks for that change.

    None means that nobody had to be asked. Without rounds left a change cannot be asked for, and the run stops.
    """
    if answer is None:
        return Verdict(gate, Decision.PASS, "Nobody has to approve this in this run's settings.")
    word = answer.strip().rstrip(".!").casefold()
    if word in {"approve", "approved", "yes", "ok"}:
        return Verdict(gate, Decision.PASS, f"Approved by {by}.")
    if word in {"reject", "rejected", "no", ""} or word.startswith("reject:"):
        return Verdict(gate, Decision.STOP, f"Rejected by {by}: {answer.strip() or 'no reason given'}")
    if rounds_left > 0:
        return Verdict(gate, Decision.FIX, f"{by} asks for a change.")
    return Verdict(gate, Decision.STOP, f"{by} asks for another change, and no round is left for one.")


def budget(config: BudgetConfig, limit: str, *, degraded: bool) -> Verdict:
    """Decide what a breach of `limit` (a sentence) leads to; degrading happens once, then it is a stop."""
    if config.on_exceed is OnExceed.PAUSE:
        return Verdict(Gate.BUDGET, Decision.PAUSE, limit)
    if config.on_exceed is OnExceed.DEGRADE and config.degrade_to and not degraded:
        return Verdict(Gate.BUDGET, Decision.DEGRADE, limit)
    return Verdict(Gate.BUDGET, Decision.STOP, limit)


def _exhausted(gate: Gate, how: Literal["accept", "fail"], why: str, iteration: int) -> Verdict:
    return Verdict(gate, _EXHAUSTED[how], f"{why} after {_count(iteration, 'fix round')}; the setting is to {how}.")


def _security_reason(gate: SecurityGate, failed: Sequence[ScannerRun], blocked: Sequence[ScanFinding]) -> str:
    parts = [f"{run.scanner} failed: {(run.failed or 'it did not see every file').rstrip('.')}" for run in failed[:3]]
    if blocked:
        worst = max(blocked, key=lambda found: found.severity.rank)
        where = f" in {worst.path}:{worst.line}" if worst.path else ""
        parts.append(f"{_count(len(blocked), 'finding')} that {gate} blocks, the worst {worst.rule}{where}")
    return "; ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
