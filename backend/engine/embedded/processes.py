"""Child processes that die with us, log to a file and are stopped within a bound."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

LAUNCHER = Path(__file__).with_name("launcher.py")
LOG_LIMIT = 10_000_000
"""Bytes; a longer log is set aside as `<name>.log.1` when its process is started."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The user a server runs as: ours, another one (`setuid`), or another one in a user namespace (`userns`)."""

    kind: Literal["self", "setuid", "userns"] = "self"
    uid: int = -1
    gid: int = -1
    name: str = ""


OURSELVES = Identity()


@dataclass(frozen=True, slots=True)
class Child:
    """A running child and where it logs."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def last_words(self, lines: int = 5) -> str:
        """The end of its log, in one line."""
        try:
            text = self.log.read_bytes()[-4000:].decode(errors="replace")
        except OSError:
            return ""
        return " / ".join(line.strip() for line in text.strip().splitlines()[-lines:])


def launched(argv: Sequence[str], identity: Identity, death_signal: signal.Signals) -> list[str]:
    """The command that starts `argv` through the launcher; `argv[0]` is an absolute path."""
    order = {
        "argv": list(argv),
        "parent": os.getpid(),
        "signal": int(death_signal),
        "identity": {"kind": identity.kind, "uid": identity.uid, "gid": identity.gid},
    }
    return [sys.executable, "-I", "-S", str(LAUNCHER), json.dumps(order)]


def spawn(
    name: str,
    argv: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str],
    identity: Identity = OURSELVES,
    death_signal: signal.Signals = signal.SIGTERM,
    stdin: bytes = b"",
) -> Child:
    """Start a child in a session of its own, so that Ctrl-C reaches us alone.

    The kernel ends it with `death_signal` when the *thread* that started it ends: start from one that lives as long.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > LOG_LIMIT:
        log.replace(log.with_name(log.name + ".1"))
    with log.open("ab") as output:
        process = subprocess.Popen(
            launched(argv, identity, death_signal),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=dict(environment),
            cwd="/",
            start_new_session=True,
        )
    assert process.stdin is not None
    try:
        process.stdin.write(stdin)
        process.stdin.close()
    except BrokenPipeError:
        pass  # It ended at once; whoever waits for it reads its log.
    return Child(name, process, log)


def run_once(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    identity: Identity = OURSELVES,
    seconds: float,
    stdin: bytes = b"",
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; one that does not end in time counts as failed."""
    try:
        done = subprocess.run(
            launched(argv, identity, signal.SIGKILL),
            input=stdin,
            capture_output=True,
            env=dict(environment),
            cwd="/",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(list(argv), 124, "", f"It did not end within {seconds:.0f} s.")
    return subprocess.CompletedProcess(
        list(argv), done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    )


def end(child: Child, steps: Sequence[tuple[signal.Signals, float]]) -> None:
    """Send each signal in turn and wait its seconds; SIGKILL comes last, and is waited for."""
    for number, seconds in (*steps, (signal.SIGKILL, 10.0)):
        if child.process.poll() is not None:
            return
        child.process.send_signal(number)
        try:
            child.process.wait(seconds)
        except subprocess.TimeoutExpired:
            continue


def running_in(directory: Path, program: str) -> list[int]:
    """Process ids of `program` whose working directory is `directory`, of this user or, for root, of any.

    This is how servers of a company that was killed are told apart from a process that merely got their old id.
    """
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            same = (entry / "comm").read_text().strip() == program and (entry / "cwd").resolve() == directory
        except OSError:
            continue  # It ended meanwhile, or belongs to somebody else.
        if same:
            found.append(int(entry.name))
    return found


def heads(pids: Collection[int]) -> list[int]:
    """Those of some processes that none of the others started."""
    return [pid for pid in pids if _parent(pid) not in pids]


def _parent(pid: int) -> int:
    try:
        # After the name in parentheses, which may hold anything: state, parent, and more.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0  # It ended meanwhile.
