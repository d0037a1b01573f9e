"""`ProgramChecks`: what decides about a commit, all of it programs in the sandbox over a copy that is thrown away."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from backend.adapters.checks import commands
from backend.adapters.checks.pytest_gate import PytestGate, Verdict
from backend.adapters.checks.scratch import Scratch, scratch
from backend.adapters.sandbox import Sandbox
from backend.adapters.scanners import report
from backend.adapters.workspace import GitWorkspace
from backend.domain.config import ChecksConfig, RunConfig
from backend.domain.ports import ScanReport, TestReport
from backend.errors import Invalid


class ProgramChecks:
    """See `backend.domain.ports.Checks`."""

    def __init__(self, workspace: GitWorkspace, sandbox: Sandbox, config: RunConfig, *, online: bool = True) -> None:
        """Check commits of `workspace` with the limits of the run's configuration.

        Without `online` the dependency audit asks nobody: pinned dependencies then fail it, weak ones are named.
        """
        self.online = online
        self.workspace = workspace
        self.sandbox = sandbox
        self.config = config

    async def test(
        self,
        commit: str,
        config: ChecksConfig,
        *,
        accepted_tests: Mapping[str, str],
        only: Sequence[str] = (),
    ) -> TestReport:
        """Run the project's tests at `commit`; accepted tests run from their pristine copy."""
        bad = [test for test in only if test.startswith(("-", "/", "..")) or "\0" in test]
        if bad:
            raise Invalid(f"{bad[0]!r} is not the id of a test.")
        async with scratch(self.workspace, commit) as place:
            tampered = await self._restore(place, accepted_tests)
            command = await asyncio.to_thread(commands.find, place.tree, config.test_command)
            verdict = await self._judge(command, place, only)
            _apply_floor(verdict, config.coverage_floor, only)
            return _report(verdict, tampered)

    async def scan(self, commit: str, config: ChecksConfig) -> ScanReport:
        """Run every configured scanner over `commit`."""
        async with scratch(self.workspace, commit) as place:
            return await report.scan(place, config, self.sandbox, self.config.sandbox, online=self.online)

    async def lint_deploy(self, commit: str, config: ChecksConfig) -> ScanReport:
        """Validate Dockerfile, workflow and compose files."""
        async with scratch(self.workspace, commit) as place:
            return await report.lint(place, config, self.sandbox, self.config.sandbox)

    async def _judge(self, command: commands.Command | None, place: Scratch, only: Sequence[str]) -> Verdict:
        if command is None:
            return Verdict("(none)", ["No way to test this project was found. Set /checks/test_command."])
        if command.kind == "pytest":
            return await PytestGate(place, self.sandbox, self.config.sandbox, command.arguments).judge(only)
        return await commands.judge(command, place, self.sandbox, self.config.sandbox)

    async def _restore(self, place: Scratch, accepted: Mapping[str, str]) -> list[str]:
        """Put the accepted version of each test in place; return the paths whose version in the commit differs."""
        tampered: list[str] = []
        for path, commit in sorted(accepted.items()):
            pristine = await self.workspace.read_bytes(commit, path)
            if pristine is None:
                raise Invalid(f"The accepted test {path!r} is not in commit {commit}.")
            if await asyncio.to_thread(_overwrite, place.tree, path, pristine):
                tampered.append(path)
        return tampered


def _overwrite(root: Path, path: str, body: bytes) -> bool:
    """Write a file, taking whatever stands in its way out of the way; return whether it was different."""
    target = root / path
    for above in reversed(target.relative_to(root).parents):
        if (root / above).is_symlink() or (root / above).is_file():
            (root / above).unlink()
    same = not target.is_symlink() and target.is_file() and target.read_bytes() == body
    if not same:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_symlink():
            target.unlink()
        target.write_bytes(body)
    return not same


def _apply_floor(verdict: Verdict, floor: float | None, only: Sequence[str]) -> None:
    if floor is None or only:
        return
    if verdict.coverage is None:
        verdict.reasons.append(f"The coverage could not be measured, and at least {floor:g} % is asked for.")
    elif verdict.coverage < floor:
        verdict.reasons.append(f"The coverage is {verdict.coverage:g} %, and at least {floor:g} % is asked for.")


def _report(verdict: Verdict, tampered: Sequence[str]) -> TestReport:
    result = verdict.result
    return TestReport(
        green=not verdict.reasons,
        reasons=tuple(verdict.reasons),
        cases=tuple(verdict.cases),
        exit_code=verdict.exit_code,
        seconds=result.seconds if result else 0.0,
        coverage=verdict.coverage,
        command=verdict.command,
        output=(result.stdout + result.stderr)[-20_000:] if result else "",
        tampered=tuple(tampered),
    )
