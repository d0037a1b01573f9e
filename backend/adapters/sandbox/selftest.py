"""The proof of a level: a probe runs inside it and must fail at everything it must not be able to do."""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from backend.domain.config import SandboxConfig
from backend.domain.ports import CommandResult
from backend.errors import Unavailable

PROBE = Path(__file__).with_name("probe.py")
_PROCESSES = 12

Run = Callable[..., Awaitable[CommandResult]]


async def prove(run: Run) -> tuple[bool, dict[str, str]]:
    """Run the probe; return whether the level holds, and what was seen, a sentence an attempt."""
    with tempfile.TemporaryDirectory(prefix="company-probe-") as name, socket.socket() as listener:
        outside = Path(name)
        root, canary = _furnish(outside), secrets.token_hex(16)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        victim = _victim(canary)
        facts = {
            "port": listener.getsockname()[1],
            "secret": str(outside / "secret"),
            "beside": str(outside / "written"),
            "canary": canary,
            "processes": _PROCESSES,
            "victim": victim.pid,
        }
        config = SandboxConfig(level="auto", processes=_PROCESSES, memory_mb=512, seconds=20, disk_mb=16)
        argv = [sys.executable, "-I", "-S", str(PROBE), json.dumps(facts)]
        try:
            result = await run(argv, root=root, config=config, readonly=(PROBE,))
            done = {
                "wrote beside the worktree": (outside / "written").exists(),  # noqa: ASYNC240  (one stat)
                "killed a process of the company": victim.poll() is not None,
            }
        except Unavailable as failed:
            return False, {"probe": failed.message}
        finally:
            victim.kill()
            victim.wait()
    return _judge(result, done)


def _furnish(outside: Path) -> Path:
    """Put a secret beside the worktree, where nothing but the sandbox stops the probe."""
    outside.chmod(0o777)  # noqa: S103  (as above)
    (outside / "secret").write_text("a secret of the company")
    root = outside / "tree"
    root.mkdir()
    return root


def _victim(canary: str) -> subprocess.Popen[bytes]:
    """Start a process of the company with a secret in its environment; it only sleeps."""
    program = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"]
    return subprocess.Popen(program, env={"CANARY": canary}, cwd="/", stdin=subprocess.DEVNULL)


def _judge(result: CommandResult, done: dict[str, bool]) -> tuple[bool, dict[str, str]]:
    try:
        seen: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        words = (result.stderr.strip() or result.stdout.strip() or f"exit code {result.exit_code}").splitlines()[-1]
        return False, {"probe": f"did not run: {words}"}
    worked = bool(seen.pop("worked"))
    seen |= done
    evidence = {"wrote its own worktree": "yes" if worked else "NO"}
    evidence |= {attempt: "YES" if succeeded else "no" for attempt, succeeded in seen.items()}
    return worked and not any(seen.values()), evidence
