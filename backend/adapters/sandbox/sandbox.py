"""`Sandbox`: finds the best level that passes its self-test, then runs commands in it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backend.adapters.sandbox import plan, seccomp, selftest
from backend.adapters.sandbox.launcher import kernel
from backend.adapters.sandbox.output import Output
from backend.adapters.sandbox.slots import slot
from backend.domain.config import SandboxConfig
from backend.domain.ports import CommandResult
from backend.errors import Unavailable

LEVELS = ("bubblewrap", "namespaces", "landlock")
_LIBRARY = str(Path(__file__).resolve().parents[3])
_BOOT = f"import sys; sys.path.insert(0, {_LIBRARY!r}); from backend.adapters.sandbox.launcher.main import main; main()"
_ADVICE = "Allow unprivileged user namespaces, or run on a kernel with Landlock (5.13 or newer)"
_OPEN_THE_WAY = (
    "Install Python and the company where every user may enter, or run it as an ordinary user with both in reach"
)
_FLOOD_BYTES = 64_000_000
_GRACE_SECONDS = 20.0

_proved: dict[str, Sandbox] = {}
"""Levels that held in this process; a failure is not kept, since the machine may only have been busy."""


class Sandbox:
    """Runs commands at one proved level; `evidence` is what the self-test saw."""

    def __init__(self, level: str, evidence: Mapping[str, str], *, commands: int = 2) -> None:
        """Use `detect` instead, which proves the level first."""
        self.level = level
        self.evidence = dict(evidence)
        self.commands = commands

    @classmethod
    async def detect(cls, config: SandboxConfig, *, commands: int = 2) -> Sandbox:
        """Return the best level that holds, proved once a process.

        `commands` is how many may run at once on this machine. Raises `Unavailable(code="sandbox_unavailable")` when
        no level, or not the one that the configuration names, passes its self-test.
        """
        known = _proved.get(config.level)
        if known is None:
            known = _proved[config.level] = await cls._search(config.level, commands)
        return known if known.commands == commands else cls(known.level, known.evidence, commands=commands)

    @classmethod
    async def _search(cls, wanted: str, commands: int) -> Sandbox:
        if wanted == "unsafe":
            return cls("unsafe", {"self-test": "none: the configuration says `level: unsafe`"}, commands=commands)
        reasons: list[str] = []
        for level in LEVELS if wanted == "auto" else (wanted,):
            lacking = _lacking(level)
            if lacking is None:
                holds, evidence = await selftest.prove(cls(level, {}, commands=commands).run)
                if holds:
                    return cls(level, evidence, commands=commands)
                seen = "; ".join(f"{what}: {seen}" for what, seen in evidence.items() if seen not in {"no", "yes"})
                lacking = (_kept_out() if level == "landlock" else None) or seen
            reasons.append(f"{level} ({lacking})")
        advice = _OPEN_THE_WAY if reasons == [f"landlock ({_kept_out()})"] else _ADVICE
        raise Unavailable(
            f"No sandbox passes its self-test here: {', '.join(reasons)}. {advice}; `company doctor` shows what is "
            "missing.",
            code="sandbox_unavailable",
        )

    async def run(
        self,
        command: str | Sequence[str],
        *,
        root: Path,
        config: SandboxConfig,
        seconds: float | None = None,
        writable: bool = True,
        env: Mapping[str, str] | None = None,
        readonly: Sequence[Path] = (),
        cwd: Path | None = None,
    ) -> CommandResult:
        """Run a shell line or a program; only `root` is writable, `readonly` paths can be read besides the system.

        Ends on its own, at `seconds` (default: the configuration's), at a limit, or when the caller is cancelled; in
        each case nothing of it is left. Raises `Unavailable` when it could not be started.
        """
        root, cwd, *allowed = await asyncio.to_thread(_resolved, root, cwd or root, *readonly)
        shell = (
            ["/bin/sh", "-c", command] if isinstance(command, str) else ["/bin/sh", "-c", 'exec "$@"', "sh", *command]
        )
        if config.network and self.level == "landlock":
            raise Unavailable("The sandbox level `landlock` cannot give network access.", code="sandbox_unavailable")
        async with slot(self.commands):
            spec = plan.spec(
                self.level,
                shell,
                root=root,
                cwd=cwd,
                config=config,
                seconds=min(seconds or config.seconds, config.seconds),
                writable=writable,
                env=env,
                readonly=allowed,
            )
            return await _Execution(spec, config.output_bytes).result()


def _lacking(level: str) -> str | None:
    """Say what a level needs that is plainly not there; the self-test judges the rest."""
    if not sys.platform.startswith("linux") or not seccomp.supported():
        return "needs Linux on x86_64 or aarch64"
    if level == "bubblewrap" and plan.bubblewrap() is None:
        return "no bubblewrap program"
    if level == "landlock" and kernel.landlock_abi() < 1:
        return "the kernel offers no Landlock"
    return None


def _kept_out() -> str | None:
    """Say which directory keeps the user that root's commands become from the interpreter, where root cannot mount."""
    if os.geteuid() != 0:
        return None
    for way in (sys.executable, os.path.realpath(sys.executable)):
        for above in reversed(Path(way).parents):
            if not above.stat().st_mode & stat.S_IXOTH:
                return f"root's commands run as a user of their own, who cannot enter {above} to reach {way}"
    return None


def _resolved(*paths: Path) -> list[Path]:
    return [path.resolve(strict=True) for path in paths]


class _Execution:
    """One launcher process from its start to the last of its tree."""

    def __init__(self, spec: dict[str, Any], limit: int) -> None:
        self.spec = spec
        self.stdout, self.stderr = Output(limit), Output(limit)
        self.flooded = False

    async def result(self) -> CommandResult:
        """Run the launcher; also on cancellation return only when everything is gone."""
        report, report_in = os.pipe()
        try:
            process = await self._start(report_in)
        finally:
            os.close(report_in)
        try:
            await self._follow(process)
        finally:
            try:
                await asyncio.shield(_end(process))
            finally:
                told = await asyncio.to_thread(_read_all, report)
        return self._judge(told)

    async def _start(self, report_in: int) -> asyncio.subprocess.Process:
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", "-c", _BOOT),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={},
                cwd="/",
                pass_fds=(report_in,),
                start_new_session=True,
            )
        except OSError as failed:
            raise Unavailable(f"The sandbox could not be started: {failed}.", code="sandbox_unavailable") from failed
        assert process.stdin is not None
        process.stdin.write(json.dumps({**self.spec, "report": report_in}).encode() + b"\n")
        return process

    async def _follow(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        lifeline = process.stdin

        def flooded() -> None:
            self.flooded = True
            lifeline.close()

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.spec["seconds"] + _GRACE_SECONDS):
                await asyncio.gather(
                    self.stdout.drain(process.stdout, _FLOOD_BYTES, flooded),
                    self.stderr.drain(process.stderr, _FLOOD_BYTES, flooded),
                )

    def _judge(self, told: bytes) -> CommandResult:
        outcome: dict[str, Any] = json.loads(told) if told else {"error": "the launcher was killed"}
        if "error" in outcome:
            words = self.stderr.text().strip().splitlines()[-1:] or [""]
            raise Unavailable(
                f"The sandbox ({self.spec['level']}) could not run the command: {outcome['error']} {words[0]}".rstrip(),
                code="sandbox_unavailable",
            )
        killed_by = "output" if self.flooded else outcome["killed_by"]
        return CommandResult(
            exit_code=outcome["exit_code"],
            stdout=self.stdout.text(),
            stderr=self.stderr.text(),
            seconds=outcome["seconds"],
            timed_out=killed_by == "time",
            killed_by=killed_by,
            truncated=self.stdout.truncated or self.stderr.truncated,
        )


async def _end(process: asyncio.subprocess.Process) -> None:
    """Close the lifeline, which kills the tree, and wait for the launcher; kill it too if it does not end."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(_GRACE_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _read_all(descriptor: int) -> bytes:
    text = bytearray()
    while chunk := os.read(descriptor, 65_536):
        text += chunk
    os.close(descriptor)
    return bytes(text)
