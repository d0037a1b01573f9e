"""Reads a command's spec from standard input, runs it confined, watches it, and reports how it ended on a descriptor.

Standard input is also the lifeline: when the company closes it (a stop, or its own death), everything is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import sys
import tempfile
import time
from typing import Any, NoReturn

from backend.adapters.sandbox.launcher import confine, kernel, watch

_INTERVAL = 0.05


def main() -> None:
    """Run the command of the spec; the exit code of this program says nothing, the report does."""
    spec = json.loads(_line(0))
    report = spec["report"]
    os.set_inheritable(report, False)
    os.set_inheritable(0, False)
    kernel.adopt_orphans()
    try:
        _prepare(spec)
        outcome = _supervise(spec)
    except (OSError, ValueError) as failed:
        watch.kill_all()
        outcome = {"error": f"{type(failed).__name__}: {failed}"}
    finally:
        _clean(spec)
    os.write(report, json.dumps(outcome).encode()[:60_000])


def _line(descriptor: int) -> bytes:
    text = bytearray()
    while not text.endswith(b"\n"):
        chunk = os.read(descriptor, 65_536)
        if not chunk:
            sys.exit(1)
        text += chunk
    return bytes(text)


def _prepare(spec: dict[str, Any]) -> None:
    """Make the private scratch directory where there is no tmpfs, and give the tree to the user who will write it."""
    if spec["level"] in {"landlock", "unsafe"}:
        spec["scratch"] = tempfile.mkdtemp(prefix="company-")
        spec["env"].update(HOME=spec["scratch"], TMPDIR=spec["scratch"])
        spec["writable"].append(spec["scratch"])
        spec["watched"].append(spec["scratch"])
    if os.geteuid() == 0 and spec["level"] != "unsafe":
        for root in [*spec["watched"], *([spec["scratch"]] if "scratch" in spec else [])]:
            _give(root, spec["uid"], spec["gid"])


def _give(root: str, uid: int, gid: int) -> None:
    """Hand a tree over to the sandbox's user; links themselves, never what they point at."""
    os.lchown(root, uid, gid)
    waiting = [root]
    while waiting:
        with os.scandir(waiting.pop()) as directory:
            for entry in directory:
                if entry.stat(follow_symlinks=False).st_uid != uid:
                    os.lchown(entry.path, uid, gid)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)


def _supervise(spec: dict[str, Any]) -> dict[str, Any]:
    started = time.monotonic()
    guard = watch.Watch(spec, started)
    errors, errors_in = os.pipe()
    child = _fork(spec, errors_in)
    os.close(errors_in)
    killed_by, code = _follow(child, guard)
    watch.kill_all()
    told = _drain(errors)
    if told:
        return {"error": told}
    return {"exit_code": code, "killed_by": killed_by, "seconds": time.monotonic() - started}


def _fork(spec: dict[str, Any], errors: int) -> int:
    """Start the confined child; for bubblewrap, limit its processes once its user namespace stands."""
    if spec["level"] != "bubblewrap":
        return _child(spec, errors)
    (info, info_in), (block_out, block) = os.pipe(), os.pipe()
    child = _child(spec, errors, info_in, block_out)
    os.close(info_in)
    os.close(block_out)
    told = _drain(info)
    if "child-pid" in told and _limited(spec, json.loads(told)["child-pid"]):
        os.write(block, b"1")
    os.close(block)
    return child


def _limited(spec: dict[str, Any], target: int) -> bool:
    """Limit bubblewrap's first process from a process of the same user: root may lack the right to."""
    helper = os.fork()
    if helper:
        return os.waitpid(helper, 0)[1] == 0
    try:
        confine.become_nobody(spec)
        confine.process_limit(target, spec["processes"])
        os._exit(0)
    finally:
        os._exit(1)


def _child(spec: dict[str, Any], errors: int, *pipes: int) -> int:
    pid = os.fork()
    if pid == 0:
        _become(spec, errors, pipes)
    return pid


def _become(spec: dict[str, Any], errors: int, pipes: tuple[int, ...]) -> NoReturn:
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        kernel.die_with_parent()
        if spec["level"] == "bubblewrap":
            confine.bubblewrap(spec, *pipes)
        getattr(confine, spec["level"])(spec)
    except (OSError, ValueError, KeyError) as failed:
        os.write(errors, f"{type(failed).__name__}: {failed}".encode()[:4000])
    finally:
        os._exit(127)


def _follow(child: int, guard: watch.Watch) -> tuple[str | None, int]:
    """Wait for the child, the lifeline or a limit; return what ended it and its exit code."""
    pidfd = os.pidfd_open(child)
    poll = select.poll()
    poll.register(0, select.POLLIN | select.POLLHUP)
    poll.register(pidfd, select.POLLIN)
    killed_by: str | None = None
    while killed_by is None:
        ready = {descriptor for descriptor, _ in poll.poll(_INTERVAL * 1000)}
        if pidfd in ready:
            return None, _code(child)
        killed_by = "stop" if 0 in ready else guard.breach()
        _reap_orphans(child)
    return killed_by, 137


def _code(child: int) -> int:
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code >= 0 else 128 - code


def _reap_orphans(child: int) -> None:
    """Collect adopted processes that ended, never the child itself, whose end must be seen."""
    for pid in watch.tree():
        if pid != child:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _drain(descriptor: int) -> str:
    text = bytearray()
    while chunk := os.read(descriptor, 4096):
        text += chunk
    os.close(descriptor)
    return text.decode("utf-8", "replace")


def _clean(spec: dict[str, Any]) -> None:
    if "scratch" in spec:
        shutil.rmtree(spec["scratch"], ignore_errors=True)
