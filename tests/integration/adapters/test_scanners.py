"""The security scan and the deployment linters: what they find, what cannot silence them, and when they fail."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import pytest
import yaml

from backend.adapters.checks.program import ProgramChecks
from backend.adapters.sandbox import Sandbox
from backend.adapters.scanners import dependencies
from backend.adapters.workspace import GitWorkspace
from backend.domain.config import ChecksConfig, RunConfig, SandboxConfig, WorkspaceConfig
from backend.domain.finding import Severity
from backend.domain.ports import Checks, ScanReport, Workspace
from backend.domain.role import Role

AWS_KEY = "AKIA" + "QX7ZJ4M2PLN5RTUV"
SECRET = f'KEY = "{AWS_KEY}"\n'


class Bench:
    """A project's repository and the scanners over it, without a network."""

    def __init__(self, home: Path, sandbox: Sandbox) -> None:
        self.workspace = GitWorkspace(home, uuid4(), uuid4())
        self.checks = ProgramChecks(self.workspace, sandbox, RunConfig(), online=False)

    async def commit(self, files: Mapping[str, str | bytes]) -> str:
        tree = await self.workspace.checkout("dev", await self.workspace.prepare(WorkspaceConfig()))
        for path, text in files.items():
            target = Path(tree.path) / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(text if isinstance(text, bytes) else text.encode())
        return await self.workspace.commit(tree, author=Role.DEVELOPER, message="x", trailers={})

    async def scan(self, files: Mapping[str, str | bytes], *scanners: str) -> ScanReport:
        config = ChecksConfig(scanners=scanners) if scanners else ChecksConfig()  # type: ignore[arg-type]  # literals
        return await self.checks.scan(await self.commit(files), config)

    async def lint(self, files: Mapping[str, str]) -> ScanReport:
        return await self.checks.lint_deploy(await self.commit(files), ChecksConfig())


@pytest.fixture
async def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, await Sandbox.detect(SandboxConfig(), commands=4))


def rules(report: ScanReport, scanner: str | None = None) -> set[tuple[str, str | None, int | None]]:
    return {(f.rule, f.path, f.line) for f in report.findings if scanner in (None, f.scanner)}


def test_the_adapters_keep_the_ports(bench: Bench) -> None:
    workspace: Workspace = bench.workspace
    checks: Checks = bench.checks
    assert (workspace, checks) == (bench.workspace, bench.checks)


async def test_a_clean_project_has_no_findings_and_every_file_was_seen(bench: Bench) -> None:
    report = await bench.scan({"shop/cart.py": "def total(items):\n    return sum(items)\n", "README.md": "# Shop\n"})
    assert report.findings == ()
    assert [run.scanner for run in report.scanners] == ["bandit", "detect-secrets", "secret-rules", "dependencies"]
    for run in report.scanners:
        assert run.failed is None
        assert run.files_scanned == run.files_expected
    assert report.scanners[0].files_expected == 1


async def test_weak_code_and_secrets_are_found_with_their_lines(bench: Bench) -> None:
    report = await bench.scan({"app.py": f"import subprocess\n{SECRET}subprocess.call('ls', shell=True)\n"})
    assert ("aws-access-key", "app.py", 2) in rules(report, "secret-rules")
    assert ("aws-access-key", "app.py", 2) in rules(report, "detect-secrets")
    assert ("B602", "app.py", 3) in rules(report, "bandit") or ("B607", "app.py", 3) in rules(report, "bandit")
    assert report.findings[0].severity is Severity.CRITICAL
    assert all(AWS_KEY not in finding.message for finding in report.findings)


@pytest.mark.parametrize(
    "files",
    [
        {"app.py": f'KEY = "{AWS_KEY}"  # nosec  # noqa  # pragma: allowlist secret\nexec(KEY)  # nosec B102\n'},
        {"app.py": f"{SECRET}exec(KEY)\n", ".bandit": "[bandit]\nexclude: /\nskips: B102\n"},
        {"app.py": f"{SECRET}exec(KEY)\n", "pyproject.toml": "[tool.bandit]\nskips = ['B102']\nexclude_dirs = ['.']\n"},
        {"app.py": f"{SECRET}exec(KEY)\n", ".secrets.baseline": "{}", "setup.cfg": "[bandit]\nskips = B102\n"},
        {"app.py": f"# pragma: allowlist nextline secret\n{SECRET}exec(KEY)\n"},
    ],
)
async def test_nothing_in_the_tree_silences_a_scanner(bench: Bench, files: dict[str, str]) -> None:
    report = await bench.scan(files)
    found = {(f.scanner, f.rule) for f in report.findings}
    assert {("bandit", "B102"), ("detect-secrets", "aws-access-key"), ("secret-rules", "aws-access-key")} <= found


async def test_code_is_found_wherever_it_hides(bench: Bench) -> None:
    report = await bench.scan({".tox/x.py": "exec('1')\n", "CVS/y.py": "exec('1')\n", "poetry.lock": SECRET}, "bandit")
    assert {path for _, path, _ in rules(report)} == {".tox/x.py", "CVS/y.py"}
    assert ("aws-access-key", "poetry.lock", 1) in rules(await bench.scan({"poetry.lock": SECRET}, "detect-secrets"))


async def test_a_file_that_does_not_parse_fails_the_scanner(bench: Bench) -> None:
    report = await bench.scan({"bad.py": "def f(:\n", "good.py": "X = 1\n"}, "bandit")
    assert report.scanners[0].failed is not None
    assert "bad.py" in report.scanners[0].failed
    assert (report.scanners[0].files_expected, report.scanners[0].files_scanned) == (2, 1)


async def test_files_of_another_encoding_are_scanned_too(bench: Bench) -> None:
    report = await bench.scan({"notes.txt": b"caf\xe9\n" + SECRET.encode(), "image.png": b"\x89PNG\0\0"})
    assert ("aws-access-key", "notes.txt", 2) in rules(report)
    assert all(run.failed is None for run in report.scanners)


async def test_asserts_in_tests_are_no_findings_and_elsewhere_they_are(bench: Bench) -> None:
    report = await bench.scan({"tests/test_a.py": "def test_a():\n    assert 1\n", "a.py": "assert 1\n"}, "bandit")
    assert rules(report) == {("B101", "a.py", 1)}


async def test_a_fingerprint_survives_a_line_move_and_tells_equal_lines_apart(bench: Bench) -> None:
    one = await bench.scan({"a.py": "exec('1')\nX = 1\nexec('1')\n"}, "bandit")
    two = await bench.scan({"a.py": "Y = 2\n\nexec('1')\nX = 1\nexec('1')\n"}, "bandit")
    marks = [finding.fingerprint for finding in one.findings]
    assert marks == [finding.fingerprint for finding in two.findings]
    assert len(set(marks)) == 2


async def test_a_report_is_the_same_every_time(bench: Bench) -> None:
    commit = await bench.commit({f"m{n}.py": f"exec('1')\n{SECRET}" for n in range(4)})
    reports = [await bench.checks.scan(commit, ChecksConfig()) for _ in range(2)]
    assert reports[0].findings == reports[1].findings


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("token = 'ghp_" + "a1B2" * 9 + "'", "github-token"),
        ("-----BEGIN RSA PRIVATE " + "KEY-----", "private-key"),
        ("url = 'postgres://ada:" + "s3cr3tpw@db.host/x'", "address-with-password"),
        ("stripe = 'sk_" + "live_" + "a1B2c3D4e5F6g7H8i9J0k1L2'", "stripe-key"),
        ('DB_PASSWORD: str = "t7Kq9' + 'zLm2"', "hard-coded-secret"),
        ('{"api_key": "9f8a7b6c' + '5d4e3f2a"}', "hard-coded-secret"),
    ],
)
async def test_our_own_rules_know(bench: Bench, line: str, rule: str) -> None:
    assert rules(await bench.scan({"a.txt": line + "\n"}, "secret-rules")) == {(rule, "a.txt", 1)}


@pytest.mark.parametrize(
    "line",
    [
        'password = "changeme"',
        'PASSWORD = "${DB_PASSWORD}"',
        'api_key = "your-api-key-here"',
        "password = os.environ['PASSWORD']",
        "postgresql://user:${PASSWORD}@db/x",
        'token_url = "https://host/token"',
        "",
        "x" * 100_000,
    ],
)
async def test_our_own_rules_let_pass(bench: Bench, line: str) -> None:
    assert rules(await bench.scan({"a.txt": line + "\n"}, "secret-rules")) == set()


async def test_offline_weak_dependencies_are_named_and_the_audit_still_fails(bench: Bench) -> None:
    report = await bench.scan({"requirements.txt": "# web\npyyaml==5.3\nrequests>=2\n"}, "dependencies")
    assert rules(report) == {("CVE-2020-14343", "requirements.txt", 2), ("unpinned", "requirements.txt", 3)}
    run = report.scanners[0]
    assert "shipped advisories as of 20" in run.version
    assert "days old, a selection that is not complete" in run.version
    assert run.failed is not None
    assert "nobody can vouch for pyyaml" in run.failed
    assert run.files_scanned == 0


async def test_offline_no_pinned_version_is_called_sound(bench: Bench) -> None:
    report = await bench.scan({"requirements.txt": "pyyaml==6.0.3\n"}, "dependencies")
    assert report.findings == ()
    assert report.scanners[0].failed is not None


@pytest.mark.parametrize(
    ("pin", "weak"),
    [
        ("flask==2.2.4", True),
        ("flask==2.2.5", False),
        ("flask==2.3.1", True),
        ("flask==2.3.2", False),
        ("requests==2.2.1", False),
        ("urllib3==2.0.5", True),
        ("gunicorn==21.2.0", True),
        ("jinja2==3.1.4rc1", True),
    ],
)
async def test_an_advisory_counts_within_its_affected_range(bench: Bench, pin: str, weak: bool) -> None:
    ids = {"flask": "CVE-2023-30861", "requests": "CVE-2023-32681", "urllib3": "CVE-2023-43804"}
    ids |= {"gunicorn": "CVE-2024-1135", "jinja2": "CVE-2024-34064"}
    report = await bench.scan({"requirements.txt": f"{pin}\n"}, "dependencies")
    assert (ids[pin.partition("==")[0]] in {finding.rule for finding in report.findings}) is weak


def test_every_shipped_advisory_names_the_text_it_was_read_from() -> None:
    data = yaml.safe_load((Path(dependencies.__file__).parent / "advisories.yaml").read_text())
    for entry in data["advisories"]:
        assert re.fullmatch(r"https://github\.com/advisories/GHSA(-[23456789cfghjmpqrvwx]{4}){3}", entry["source"])
        assert re.fullmatch(r"CVE-\d{4}-\d{4,}|GHSA-.*", entry["id"])
        assert entry["modified"] <= data["as_of"] <= data["read_on"]
        assert Severity(entry["severity"])
        for span in entry["affected"]:
            assert re.fullmatch(r"(?:>=[\d.]+,)?<=?[\d.]+", span)


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"requirements.txt": "a-package-nobody-knows==1.0\n"}, "nobody can vouch for a-package-nobody-knows"),
        ({"pyproject.toml": "[project]\ndependencies = ['x @ https://h/x.whl']\n"}, "cannot read pyproject.toml"),
        ({"pyproject.toml": "not toml ["}, "cannot read pyproject.toml"),
        ({"package.json": '{"dependencies": {"left-pad": "1.0.0"}}'}, "npm packages cannot be audited"),
        ({"requirements.txt": "--index-url https://evil/\n"}, "not a plain requirement"),
    ],
)
async def test_what_cannot_be_audited_fails(bench: Bench, files: dict[str, str], why: str) -> None:
    report = await bench.scan(files, "dependencies")
    assert report.scanners[0].failed is not None
    assert why in report.scanners[0].failed


async def test_a_scanner_that_is_missing_fails(bench: Bench) -> None:
    report = await bench.scan({"a.py": "X = 1\n"}, "semgrep")
    assert report.scanners[0].failed is not None


GOOD_DEPLOY = {
    "Dockerfile": 'FROM python:3.12-slim\nWORKDIR /app\nCOPY . .\nUSER 1000\nCMD ["python", "-m", "shop"]\n',
    "compose.yaml": "services:\n  shop:\n    build: .\n",
    ".github/workflows/ci.yml": (
        "name: ci\non: push\npermissions: {}\njobs:\n  test:\n    runs-on: ubuntu-latest\n    timeout-minutes: 10\n"
        "    steps:\n      - run: python -m unittest\n"
    ),
}


async def test_sound_deployment_files_pass_and_the_report_names_who_judged(bench: Bench) -> None:
    report = await bench.lint(GOOD_DEPLOY)
    assert [f for f in report.findings if f.severity.rank >= Severity.MEDIUM.rank] == []
    assert [run.failed for run in report.scanners] == [None] * len(report.scanners)
    names = {run.scanner for run in report.scanners}
    assert {"hadolint", "yamllint"} <= names
    assert {"check-jsonschema (github-workflows)", "actionlint", "zizmor"} <= names
    assert names & {"docker compose config", "check-jsonschema (compose-spec)"}
    assert all(run.files_expected >= 1 for run in report.scanners)


async def test_broken_deployment_files_are_found(bench: Bench) -> None:
    report = await bench.lint(
        {
            "Dockerfile": "# hadolint ignore=DL3004\nFROM debian:12\nRUN sudo true\n",
            "deploy/api.Dockerfile": "FRUM x\n",
            "compose.yaml": "services:\n  a:\n    image: x\n    portz: 1\n",
            ".github/workflows/ci.yml": "on: push\njobs:\n  t:\n    steps: []\n",
            "config.yml": "a: b: c\n",
        }
    )
    found = {(f.path, f.severity) for f in report.findings}
    for path in ("Dockerfile", "deploy/api.Dockerfile", "compose.yaml", ".github/workflows/ci.yml", "config.yml"):
        assert (path, Severity.HIGH) in found, report.findings
    assert ("DL3004", "Dockerfile", 3) in rules(report)


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("    needs: [build]\n", "job-needs"),
        ("    if: github.evnt_name == 'push'\n", "expression"),
        ("    env:\n      OS: ${{ matrix.os }}\n", "expression"),
        ("    env:\n      OS: ${{ matrix.os }}  # actionlint:ignore expression -- it is fine\n", "expression"),
    ],
)
async def test_a_fault_that_fits_the_schema_of_workflows_is_found_by_actionlint(
    bench: Bench, line: str, rule: str
) -> None:
    before, steps, after = GOOD_DEPLOY[".github/workflows/ci.yml"].partition("    steps:\n")
    report = await bench.lint({".github/workflows/ci.yml": before + line + steps + after})
    assert [run.failed for run in report.scanners] == [None] * len(report.scanners)
    grave = {(f.scanner, f.rule) for f in report.findings if f.severity.rank >= Severity.HIGH.rank}
    assert grave == {("actionlint", rule)}, report.findings


async def test_an_action_that_is_only_old_does_not_block(bench: Bench) -> None:
    workflow = GOOD_DEPLOY[".github/workflows/ci.yml"] + (
        "      - uses: actions/checkout@v4\n        with:\n          persist-credentials: false\n"
    )
    report = await bench.lint({".github/workflows/ci.yml": workflow})
    old = [f for f in report.findings if f.scanner == "actionlint"]
    assert [(f.rule, f.severity) for f in old] == [("action", Severity.MEDIUM)]


async def test_a_dangerous_workflow_is_found(bench: Bench) -> None:
    workflow = GOOD_DEPLOY[".github/workflows/ci.yml"].replace(
        "python -m unittest", "echo ${{ github.event.issue.title }}  # zizmor: ignore[template-injection]"
    )
    report = await bench.lint({".github/workflows/ci.yml": workflow.replace("on: push", "on: issues")})
    assert any(f.path == ".github/workflows/ci.yml" and f.severity.rank >= Severity.HIGH.rank for f in report.findings)


async def test_no_deployment_files_are_no_findings(bench: Bench) -> None:
    report = await bench.lint({"a.py": "X = 1\n"})
    assert report.findings == ()
    assert [run.failed for run in report.scanners] == [None] * len(report.scanners)
