"""The git program, started so that nothing in a repository, a remote or a home directory can make it run anything else.

Hooks, filters, fsmonitor, external diffs, helpers and foreign configuration are off (`hardened/.gitconfig` is all it
reads); it never asks, never discovers a repository by itself, and every call has a time limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from backend.errors import CompanyError, Invalid, Unavailable

_HOME = Path(__file__).with_name("hardened")
_SECONDS = 120.0
_OUTPUT = 256 * 1024 * 1024
_BUSY = re.compile(r"\.lock': File exists|cannot lock ref|Unable to create '.*\.lock'")


class GitFailed(CompanyError):
    """Git refused; the message carries its own words, without credentials."""

    code = "git_failed"


@dataclass(frozen=True, slots=True)
class Output:
    """How a call ended; `cut` says that output was left unread at the limit."""

    code: int
    stdout: bytes
    stderr: str
    cut: bool = False

    @property
    def text(self) -> str:
        """Standard output as text, undecodable bytes replaced, without its last line end."""
        return self.stdout.decode("utf-8", "replace").removesuffix("\n")


@lru_cache(maxsize=1)
def program() -> str:
    """Return the path of the git program; `Unavailable` where there is none."""
    found = shutil.which("git")
    if found is None:
        raise Unavailable("There is no git program on this machine. Install git and start again.", code="git_missing")
    return found


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the whole environment git runs with: nothing of the caller's comes through."""
    return {
        "PATH": os.pathsep.join((str(Path(program()).parent), os.defpath)),
        "HOME": str(_HOME),
        "XDG_CONFIG_HOME": os.devnull,
        "GIT_CONFIG_GLOBAL": str(_HOME / ".gitconfig"),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "false",
        "SSH_ASKPASS": "false",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_LFS_SKIP_SMUDGE": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_LITERAL_PATHSPECS": "1",
        "GIT_PROTOCOL_FROM_USER": "0",
        "LC_ALL": "C",
        **(extra or {}),
    }


def without_credentials(text: str) -> str:
    """Take user names, passwords and tokens out of the addresses in a text."""
    return re.sub(r"(\w+://)[^/@\s]+@", r"\1***@", text)


class Git:
    """One repository's git."""

    def __init__(self, git_dir: Path) -> None:
        """Speak to the repository at `git_dir`, which need not exist yet."""
        self.git_dir = git_dir

    async def run(
        self,
        *args: str,
        stdin: bytes | None = None,
        env: Mapping[str, str] | None = None,
        ok: tuple[int, ...] = (0,),
        seconds: float = _SECONDS,
        limit: int = _OUTPUT,
    ) -> Output:
        """Run one git command; an exit code outside `ok` raises `GitFailed`, too long raises `Unavailable`."""
        for _ in range(20):
            output = await self._once(args, stdin, env, seconds, limit)
            if output.code in ok or output.cut:
                return output
            if not _BUSY.search(output.stderr):
                break
            await asyncio.to_thread(self._clear_stale_locks)
            await asyncio.sleep(0.25)
        words = without_credentials(output.stderr.strip().splitlines()[-1] if output.stderr.strip() else "no reason")
        raise GitFailed(f"git {args[0]} failed with code {output.code}: {words}")

    async def _once(
        self, args: tuple[str, ...], stdin: bytes | None, env: Mapping[str, str] | None, seconds: float, limit: int
    ) -> Output:
        process = await asyncio.create_subprocess_exec(
            program(),
            f"--git-dir={self.git_dir}",
            *args,
            stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(env),
            cwd="/",
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(seconds):
                return await _talk(process, stdin, limit)
        except TimeoutError as late:
            raise Unavailable(f"git {args[0]} did not end within {seconds:.0f} s.", code="git_timeout") from late
        finally:
            await _reap(process)

    def _clear_stale_locks(self) -> None:
        """Remove lock files that no living git can hold: every call ends within the time limit."""
        probe = self.git_dir / "clock"
        probe.touch()  # the file system's own clock, not ours
        now = probe.stat().st_mtime
        for lock in (*self.git_dir.glob("*.lock"), *(self.git_dir / "refs").rglob("*.lock")):
            with contextlib.suppress(FileNotFoundError):
                if now - lock.stat().st_mtime > _SECONDS:
                    lock.unlink()


async def _talk(process: asyncio.subprocess.Process, stdin: bytes | None, limit: int) -> Output:
    assert process.stdout is not None and process.stderr is not None

    async def feed() -> None:
        if stdin is not None and process.stdin is not None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                process.stdin.write(stdin)
                await process.stdin.drain()
            process.stdin.close()

    (stdout, cut), (stderr, _), _ = await asyncio.gather(
        _read(process.stdout, limit, stop=True), _read(process.stderr, 64_000, stop=False), feed()
    )
    if cut:
        _kill(process)
    code = await process.wait()
    return Output(code, stdout, stderr.decode("utf-8", "replace"), cut)


async def _read(stream: asyncio.StreamReader, limit: int, *, stop: bool) -> tuple[bytes, bool]:
    """Read at most `limit` bytes; beyond it either stop (the caller kills) or read on and forget."""
    kept = bytearray()
    async for chunk in _chunks(stream):
        if len(kept) + len(chunk) > limit:
            kept += chunk[: limit - len(kept)]
            if stop:
                return bytes(kept), True
        else:
            kept += chunk
    return bytes(kept), False


async def _chunks(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while chunk := await stream.read(65_536):
        yield chunk


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


async def _reap(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        _kill(process)
        await asyncio.shield(process.wait())


def check_remote(remote: str) -> str:
    """Return the address if git may open it: https, ssh, git, `user@host:path` or an absolute local path."""
    if re.fullmatch(r"(https|ssh|git)://[^\s\x00-\x1f-][^\s\x00-\x1f]*", remote):
        return remote
    if re.fullmatch(r"[A-Za-z0-9_][\w.-]*@[A-Za-z0-9][\w.-]*:(?!//)[^\s\x00-\x1f-][^\s\x00-\x1f]*", remote):
        return remote
    if remote.startswith("/") and "\0" not in remote and ".." not in Path(remote).parts:
        return remote
    raise Invalid(
        f"The remote {without_credentials(remote)!r} cannot be used. "
        "Give an https, ssh or git address, or an absolute local path.",
        code="remote_invalid",
    )
