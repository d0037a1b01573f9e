"""`WorktreeToolbox`: the tools of one role in one worktree; what a model can mend comes back as an observation."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]  # ships no types

from backend.adapters.sandbox import Sandbox
from backend.adapters.toolbox import files, text
from backend.adapters.workspace import GitWorkspace
from backend.agents.tools import TOOL_SCHEMAS
from backend.domain.config import RunConfig
from backend.domain.edit import NotReplaced, str_replace
from backend.domain.ports import Checks, Observation, Worktree
from backend.domain.role import TOOLS, Role
from backend.errors import Invalid

_LOOP = frozenset({"submit", "ask_human"})
_READ_LINES = 400
_SHORT_FILE_LINES = 120
_SEARCH_SECONDS = 20.0
_SEARCH = f"""
import json, pathlib, re, sys
sys.path.insert(0, {str(Path(__file__).resolve().parents[3])!r})
from backend.adapters.toolbox.files import search
root, regex, glob = json.load(sys.stdin)
print(json.dumps(search(pathlib.Path(root), re.compile(regex), glob)))
"""

OnCommand = Callable[[dict[str, Any]], Awaitable[None]]
"""Told of each command that ran: `{"command", "exit_code", "seconds", "killed_by"}`."""


class WorktreeToolbox:
    """See `backend.domain.ports.Toolbox`; `submit` and `ask_human` are the loop's, not the toolbox's."""

    def __init__(
        self,
        role: Role,
        tree: Worktree,
        *,
        workspace: GitWorkspace,
        sandbox: Sandbox,
        config: RunConfig,
        checks: Checks,
        on_command: OnCommand | None = None,
    ) -> None:
        """Work in `tree`, which `workspace` checked out."""
        self.role = role
        self.tree = tree
        self.root = Path(tree.path)
        self.workspace = workspace
        self.sandbox = sandbox
        self.config = config
        self.checks = checks
        self._on_command = on_command
        self._failed_replacements: dict[str, int] = {}
        self._tools: dict[str, Callable[..., Awaitable[Observation]]] = {
            "list_files": self._list_files,
            "search": self._search,
            "read_file": self._read_file,
            "str_replace": self._str_replace,
            "write_file": self._write_file,
            "delete_file": self._delete_file,
            "run": self._run,
            "run_tests": self._run_tests,
        }

    async def call(self, name: str, arguments: Mapping[str, Any]) -> Observation:
        """Run a tool; an unknown tool, one the role does not have, or arguments that do not fit, is malformed."""
        allowed = TOOLS[self.role] - _LOOP
        if name not in allowed:
            known = ", ".join(sorted(allowed)) or "none"
            return Observation(f"There is no tool {name!r} for this role. Tools: {known}.", ok=False, malformed=True)
        wrong = _wrong(name, arguments)
        if wrong:
            return Observation(f"The arguments of {name} do not fit: {wrong}", ok=False, malformed=True)
        try:
            found = await self._tools[name](**arguments)
        except Invalid as refused:
            return Observation(text.cut(refused.message), ok=False)
        return Observation(text.cut(found.text), ok=found.ok)

    async def pending_diff(self) -> str:
        """The diff of the worktree against its base."""
        try:
            return (await self.workspace.pending(self.tree)).text
        except Invalid as refused:
            return refused.message

    async def _list_files(self, path: str = ".", depth: int = 2) -> Observation:
        start = files.inside(self.root, path)
        if not await asyncio.to_thread(start.is_dir):
            raise Invalid(f"{path!r} is not a folder.")
        rows = await asyncio.to_thread(files.listing, self.root, start, depth)
        return Observation("\n".join(rows) or f"{path!r} is empty.")

    async def _search(self, regex: str, glob: str | None = None) -> Observation:
        try:
            re.compile(regex)
        except (re.error, RecursionError, OverflowError) as bad:
            raise Invalid(f"The regular expression is wrong: {bad}.") from None
        hits, more = await self._search_apart(regex, glob)
        rows = [*hits, "… there are more hits: narrow the expression or the glob."] if more else hits
        return Observation("\n".join(rows) or "No line matches.")

    async def _search_apart(self, regex: str, glob: str | None) -> tuple[list[str], bool]:
        """Search in a process of its own: an expression can take for ever, and a thread cannot be killed."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-c", _SEARCH),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={},
        )
        asked = json.dumps([str(self.root), regex, glob]).encode()
        try:
            async with asyncio.timeout(_SEARCH_SECONDS):
                told, _ = await process.communicate(asked)
        except TimeoutError:
            raise Invalid(f"The search took longer than {_SEARCH_SECONDS:.0f} s. Use a simpler expression.") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        try:
            hits, more = json.loads(told)
        except ValueError:
            raise Invalid("The search broke off. Use a simpler expression.") from None
        return hits, more

    async def _read_file(self, path: str, start: int = 1, end: int | None = None) -> Observation:
        lines = (await asyncio.to_thread(files.read, files.inside(self.root, path), path)).splitlines()
        last = min(len(lines), start + _READ_LINES - 1 if end is None else min(end, start + _READ_LINES - 1))
        if not lines:
            return Observation(f"{path} is empty.")
        if start > len(lines) or (end is not None and end < start):
            raise Invalid(f"{path} has {len(lines)} lines; lines {start} to {end or last} are not there.")
        note = "" if last == len(lines) else f"\n({len(lines)} lines in all; go on with start={last + 1})"
        return Observation(text.numbered(lines[start - 1 : last], start) + note)

    async def _str_replace(self, path: str, old_str: str, new_str: str) -> Observation:
        place = files.inside(self.root, path)
        self._editable(path)
        before = await asyncio.to_thread(files.read, place, path)
        done = await asyncio.to_thread(str_replace, before, old_str, new_str)
        if isinstance(done, NotReplaced):
            self._failed_replacements[path] = self._failed_replacements.get(path, 0) + 1
            hint = (
                " After two failures write_file is open for this file." if self._failed_replacements[path] > 1 else ""
            )
            return Observation(done.reason + hint, ok=False)
        await asyncio.to_thread(files.write, place, path, done.text)
        after = done.text.splitlines()
        first, last = max(1, done.line - 2), done.line + new_str.count("\n") + 2
        how = "" if done.how == "exact" else f" (found by {done.how})"
        return Observation(f"{path} was changed{how}:\n" + text.numbered(after[first - 1 : last], first))

    async def _write_file(self, path: str, content: str) -> Observation:
        place = files.inside(self.root, path)
        self._editable(path)
        exists = await asyncio.to_thread(place.is_file)
        if exists and self._failed_replacements.get(path, 0) < 2:
            long = (await asyncio.to_thread(files.read, place, path)).count("\n") > _SHORT_FILE_LINES
            if long:
                raise Invalid(
                    f"{path} is there already and has more than {_SHORT_FILE_LINES} lines. Change it with str_replace; "
                    "write_file is for new files, short files, or after two failed replacements."
                )
        await asyncio.to_thread(files.write, place, path, content)
        return Observation(f"{path} was {'rewritten' if exists else 'written'} ({len(content.splitlines())} lines).")

    async def _delete_file(self, path: str) -> Observation:
        place = files.inside(self.root, path)
        self._editable(path)
        named = self.root / path
        if named.is_symlink() or await asyncio.to_thread(place.is_file):
            await asyncio.to_thread((named if named.is_symlink() else place).unlink)
            return Observation(f"{path} was deleted.")
        raise Invalid(f"There is no file {path!r}.")

    async def _run(self, command: str, seconds: int = 60) -> Observation:
        result = await self.sandbox.run(
            command, root=self.root, config=self.config.sandbox, seconds=min(seconds, self.config.sandbox.seconds)
        )
        if self._on_command is not None:
            shown = {"exit_code": result.exit_code, "seconds": round(result.seconds, 3), "killed_by": result.killed_by}
            await self._on_command({"command": command[:500], **shown})
        return Observation(text.command(result), ok=result.exit_code == 0)

    async def _run_tests(self, ids: list[str] | None = None) -> Observation:
        snapshot = await self.workspace.commit(self.tree, author=self.role, message="Work in progress", trailers={})
        report = await self.checks.test(snapshot, self.config.checks, accepted_tests={}, only=ids or ())
        if self._on_command is not None:
            shown = {"exit_code": report.exit_code, "seconds": round(report.seconds, 3), "killed_by": None}
            await self._on_command({"command": report.command[:500], **shown})
        return Observation(text.tests(report), ok=report.green)

    def _editable(self, path: str) -> None:
        if len(path) > 400 or any(len(part.encode()) > 200 for part in Path(path).parts):
            raise Invalid(f"The path {path[:60]!r}… is too long.")


def _wrong(name: str, arguments: Mapping[str, Any]) -> str | None:
    """Say the first thing that is wrong with a tool's arguments, or None."""
    validator = Draft202012Validator(TOOL_SCHEMAS[name]["parameters"])
    errors = sorted(validator.iter_errors(dict(arguments)), key=lambda error: list(map(str, error.absolute_path)))
    if not errors:
        return None
    where = "/".join(map(str, errors[0].absolute_path))
    return f"{where + ': ' if where else ''}{errors[0].message[:300]}"
