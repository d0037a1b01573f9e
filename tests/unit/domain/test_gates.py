"""Gates decide from facts, table by table."""

import pytest

from backend.domain import gates
from backend.domain.config import BudgetConfig, QaConfig, ReviewConfig, SecurityConfig, SecurityGate
from backend.domain.finding import Severity
from backend.domain.gates import Decision, Gate
from backend.domain.ports import ScanFinding, ScannerRun, ScanReport

SEEN = ScannerRun("bandit", "1", 3, 3, 0.1)


def finding(severity: Severity, name: str = "f1") -> ScanFinding:
    return ScanFinding(name, "bandit", "B105", severity, "a.py", 1, "A secret.")


def scan(*severities: Severity, runs: tuple[ScannerRun, ...] = (SEEN,)) -> ScanReport:
    return ScanReport(tuple(finding(severity, f"f{at}") for at, severity in enumerate(severities)), runs)


@pytest.mark.parametrize(
    ("approved", "iteration", "exhausted", "decision"),
    [
        (True, 0, "fail", Decision.PASS),
        (True, 9, "fail", Decision.PASS),
        (False, 0, "fail", Decision.FIX),
        (False, 1, "fail", Decision.FIX),
        (False, 2, "fail", Decision.FAIL),
        (False, 2, "accept", Decision.ACCEPT),
        (False, 3, "accept", Decision.ACCEPT),
    ],
)
def test_the_review_gate_counts_rounds(approved: bool, iteration: int, exhausted: str, decision: Decision) -> None:
    config = ReviewConfig.model_validate({"max_iterations": 2, "on_exhausted": exhausted})
    assert gates.review(config, iteration=iteration, approved=approved, issues=1).decision is decision


@pytest.mark.parametrize(("iteration", "decision"), [(0, Decision.FIX), (1, Decision.FAIL)])
def test_without_a_change_there_is_nothing_to_accept(iteration: int, decision: Decision) -> None:
    config = ReviewConfig(max_iterations=1, on_exhausted="accept")
    assert gates.attempt(config, iteration=iteration, trouble="Nothing was changed.").decision is decision


@pytest.mark.parametrize(
    ("green", "iteration", "exhausted", "decision"),
    [
        (True, 0, "fail", Decision.PASS),
        (False, 0, "fail", Decision.FIX),
        (False, 1, "fail", Decision.FAIL),
        (False, 1, "accept", Decision.ACCEPT),
    ],
)
def test_the_qa_gate_believes_the_report_alone(green: bool, iteration: int, exhausted: str, decision: Decision) -> None:
    config = QaConfig.model_validate({"max_iterations": 1, "on_exhausted": exhausted})
    verdict = gates.qa(config, iteration=iteration, green=green, reasons=("1 test failed.",), passed=4)
    assert verdict.decision is decision
    assert verdict.goes_on is (decision in {Decision.PASS, Decision.ACCEPT})


@pytest.mark.parametrize(
    ("gate", "severity", "blocks"),
    [
        (SecurityGate.OFF, Severity.CRITICAL, False),
        (SecurityGate.WARN, Severity.CRITICAL, False),
        (SecurityGate.BLOCK_CRITICAL, Severity.HIGH, False),
        (SecurityGate.BLOCK_CRITICAL, Severity.CRITICAL, True),
        (SecurityGate.BLOCK_HIGH, Severity.MEDIUM, False),
        (SecurityGate.BLOCK_HIGH, Severity.HIGH, True),
        (SecurityGate.BLOCK_HIGH, Severity.CRITICAL, True),
        (SecurityGate.BLOCK_ANY, Severity.INFO, True),
    ],
)
def test_the_security_gate_blocks_from_its_severity_on(gate: SecurityGate, severity: Severity, blocks: bool) -> None:
    config = SecurityConfig(gate=gate, max_iterations=1)
    first = gates.security(config, scan(severity), iteration=0)
    last = gates.security(config, scan(severity), iteration=1)
    assert first.decision is (Decision.FIX if blocks else Decision.PASS)
    assert last.decision is (Decision.STOP if blocks else Decision.PASS)


def test_a_waived_finding_does_not_block() -> None:
    config = SecurityConfig()
    assert gates.security(config, scan(Severity.CRITICAL), iteration=0, waived={"f0"}).decision is Decision.PASS
    assert gates.security(config, scan(Severity.CRITICAL), iteration=0, waived={"f1"}).decision is Decision.FIX


@pytest.mark.parametrize(
    ("run", "decision"),
    [
        (ScannerRun("bandit", "", 3, 0, 0.0, "bandit is not installed."), Decision.STOP),
        (ScannerRun("bandit", "1", 3, 3, 0.0, "bandit crashed."), Decision.STOP),
        (ScannerRun("bandit", "1", 3, 2, 0.0, "a.py does not parse."), Decision.FIX),
        (ScannerRun("bandit", "1", 3, 2, 0.0), Decision.FIX),
        (ScannerRun("bandit", "1", 0, 0, 0.0), Decision.PASS),
    ],
)
def test_a_blind_scanner_fails_the_gate(run: ScannerRun, decision: Decision) -> None:
    assert gates.security(SecurityConfig(), scan(runs=(run,)), iteration=0).decision is decision


def test_a_gate_that_only_warns_says_that_a_scanner_failed() -> None:
    broken = ScannerRun("bandit", "", 3, 0, 0.0, "bandit is not installed.")
    verdict = gates.security(SecurityConfig(gate=SecurityGate.WARN), scan(runs=(broken,)), iteration=0)
    assert verdict.decision is Decision.PASS
    assert "1 scanner failed" in verdict.reason


@pytest.mark.parametrize(
    ("severities", "decision"),
    [
        ((), Decision.PASS),
        ((Severity.INFO, Severity.MEDIUM), Decision.ACCEPT),
        ((Severity.HIGH,), Decision.FAIL),
    ],
)
def test_serious_faults_of_deployment_files_fail_the_run(severities: tuple[Severity, ...], decision: Decision) -> None:
    assert gates.deploy(scan(*severities)).decision is decision


def test_a_linter_that_failed_fails_the_deployment_gate() -> None:
    broken = ScannerRun("hadolint", "", 1, 0, 0.0, "hadolint was killed.")
    verdict = gates.deploy(scan(runs=(SEEN, broken)))
    assert verdict.decision is Decision.FAIL
    assert "hadolint was killed" in verdict.reason


@pytest.mark.parametrize(
    ("answer", "left", "decision"),
    [
        (None, 0, Decision.PASS),
        ("approve", 0, Decision.PASS),
        (" Yes. ", 3, Decision.PASS),
        ("reject", 3, Decision.STOP),
        ("reject: too expensive", 3, Decision.STOP),
        ("", 3, Decision.STOP),
        ("Use SQLite instead.", 1, Decision.FIX),
        ("Use SQLite instead.", 0, Decision.STOP),
    ],
)
def test_an_answer_approves_rejects_or_asks_for_a_change(answer: str | None, left: int, decision: Decision) -> None:
    assert gates.approval(Gate.PLAN, answer, by="ada", rounds_left=left).decision is decision


@pytest.mark.parametrize(
    ("config", "degraded", "decision"),
    [
        ({}, False, Decision.STOP),
        ({"on_exceed": "pause"}, False, Decision.PAUSE),
        ({"on_exceed": "degrade", "degrade_to": "small"}, False, Decision.DEGRADE),
        ({"on_exceed": "degrade", "degrade_to": "small"}, True, Decision.STOP),
    ],
)
def test_the_budget_gate_degrades_once(config: dict[str, str], degraded: bool, decision: Decision) -> None:
    found = gates.budget(BudgetConfig.model_validate(config), "The limit of 100 tokens is reached.", degraded=degraded)
    assert found.decision is decision


def test_every_security_setting_has_a_row_in_the_table() -> None:
    assert set(gates.BLOCKS_FROM) == set(SecurityGate)
