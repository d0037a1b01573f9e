"""`GitWorkspace`: a bare repository a project, a plain directory a worktree, and only commit ids outside.

Every method may be called twice and may have been killed half way the time before.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from uuid import UUID

from backend.adapters.workspace import changes, tree
from backend.adapters.workspace.git import Git, GitFailed
from backend.adapters.workspace.merging import merge_trees
from backend.adapters.workspace.origin import Origin
from backend.adapters.workspace.outline import SUFFIXES, outline
from backend.domain.config import WorkspaceConfig
from backend.domain.ports import Diff, Merge, Worktree
from backend.domain.role import Role
from backend.errors import Invalid, NotFound

_WHOLE_DIFF = 16_000_000
_OUTLINED_FILES = 300


class GitWorkspace:
    """The files of one run; see `backend.domain.ports.Workspace` for what each method promises."""

    def __init__(self, home: Path, project_id: UUID, run_id: UUID) -> None:
        """Use `<home>/repositories/<project>.git` and `<home>/worktrees/<run>/`; nothing is made yet."""
        self.project_id = project_id
        self.git_dir = (home / "repositories" / f"{project_id}.git").absolute()
        self.trees = (home / "worktrees" / str(run_id)).absolute()
        self.git = Git(self.git_dir)
        self.origin = Origin(self.git_dir, project_id)

    async def prepare(self, config: WorkspaceConfig) -> str:
        """Make the repository if it is not there; return the commit its branch points at."""
        return await self.origin.prepare(config)

    async def push(self, config: WorkspaceConfig, branch: str, commit: str) -> str | None:
        """Push a commit to the remote's branch; return why it did not take it, None when it holds the commit."""
        return await self.origin.push(config, branch, await self._commit_id(commit))

    async def checkout(self, name: str, commit: str) -> Worktree:
        """Put the worktree `name` at `commit`, clean."""
        commit = await self._commit_id(commit)
        path = await asyncio.to_thread(self._emptied, name)
        env = self._env(path)
        await self.git.run("read-tree", commit, env=env)
        await self.git.run("checkout-index", "--all", "--force", env=env)
        await asyncio.to_thread(tree.check, path)
        return Worktree(str(path), commit)

    async def export(self, commit: str, into: Path) -> None:
        """Write a commit's files into an empty directory, which no index of this run knows."""
        env = {"GIT_WORK_TREE": str(into), "GIT_INDEX_FILE": f"{into}.index"}
        try:
            await self.git.run("read-tree", await self._commit_id(commit), env=env)
            await self.git.run("checkout-index", "--all", "--force", env=env)
            await asyncio.to_thread(tree.check, into)
        finally:
            await asyncio.to_thread(Path(f"{into}.index").unlink, missing_ok=True)

    async def commit(self, tree: Worktree, *, author: Role, message: str, trailers: Mapping[str, str]) -> str:
        """Commit all of the tree on top of its base; return the base where nothing changed."""
        written = await self._write_tree(tree)
        base = (await self.git.run("rev-parse", "--verify", f"{tree.base}^{{tree}}")).text
        if written == base:
            return tree.base
        return await self._commit_tree(written, (tree.base,), author, message, trailers)

    async def pending(self, tree: Worktree, *, limit: int = 60_000) -> Diff:
        """What the worktree changes against its base, not committed yet."""
        return await self.diff(tree.base, await self._write_tree(tree), limit=limit)

    async def merge(self, onto: str, commit: str, *, author: Role, message: str, trailers: Mapping[str, str]) -> Merge:
        """Merge `commit` onto `onto`; no branch is moved, and a commit that `onto` holds already changes nothing."""
        onto, commit = await self._commit_id(onto), await self._commit_id(commit)
        held = await self.git.run("merge-base", "--is-ancestor", commit, onto, ok=(0, 1))
        if held.code == 0:
            return Merge(onto)
        written, conflicts = await merge_trees(self.git, onto, commit, self.trees)
        if written is None:
            return Merge(None, tuple(conflicts))
        return Merge(await self._commit_tree(written, (onto, commit), author, message, trailers))

    async def point(self, branch: str, commit: str) -> None:
        """Make a branch point at a commit."""
        commit = await self._commit_id(commit)
        ref = f"refs/heads/{branch}"
        if (await self.git.run("check-ref-format", ref, ok=(0, 1))).code != 0:
            raise Invalid(f"{branch!r} is not a name that git allows for a branch.", code="branch_invalid")
        await self.git.run("update-ref", ref, commit)

    async def diff(self, base: str, commit: str, *, limit: int = 60_000) -> Diff:
        """What changed between two commits (or trees)."""
        options = ("diff-tree", "-r", "--no-renames", "--no-ext-diff", "--no-textconv")
        names = await self.git.run(*options, "--raw", "--numstat", "-z", base, commit, "--")
        unified = await self.git.run(*options, "-p", "--no-color", base, commit, "--", limit=_WHOLE_DIFF)
        return changes.diff(names.stdout, unified.stdout, limit, cut=unified.cut)

    async def files(self, commit: str) -> Sequence[str]:
        """The paths of a commit, sorted."""
        listed = await self.git.run("ls-tree", "-r", "-z", "--name-only", await self._commit_id(commit))
        return sorted(name.decode("utf-8", "replace") for name in listed.stdout.split(b"\0") if name)

    async def read(self, commit: str, path: str, *, limit: int = 1_000_000) -> str | None:
        """The text of a file at a commit, its first `limit` characters; None where it is not there or not text."""
        body = await self.read_bytes(commit, path, limit=4 * limit + 4)
        if body is None or b"\0" in body:
            return None
        try:
            text = body.decode("utf-8")
        except UnicodeDecodeError as bad:
            if bad.start < len(body) - 4 or len(body) < 4 * limit:
                return None
            text = body[: bad.start].decode("utf-8")
        return text[:limit]

    async def read_bytes(self, commit: str, path: str, *, limit: int = tree.LARGEST_FILE) -> bytes | None:
        """The first `limit` bytes of a regular file at a commit; None where there is none."""
        entry = await self.git.run("ls-tree", "-z", await self._commit_id(commit), "--", _inside(path))
        found = re.match(rb"^100(?:644|755|664) blob ([0-9a-f]{40,64})\t", entry.stdout)
        if found is None:
            return None
        return (await self.git.run("cat-file", "blob", found[1].decode(), limit=limit)).stdout

    async def outline(self, commit: str, *, limit: int = 4_000) -> str:
        """A map of the repository for prompts."""
        files = await self.files(commit)
        worth = [path for path in files if PurePosixPath(path).suffix in SUFFIXES][:_OUTLINED_FILES]
        return outline(files, await self._bodies(commit, worth), limit)

    async def blame(self, commit: str, path: str, line: int) -> changes.Blame | None:
        """Which commit last touched a line, with its trailers; None where there is no such line."""
        commit = await self._commit_id(commit)
        try:
            told = await self.git.run("blame", "--porcelain", f"-L{line},{line}", commit, "--", _inside(path))
        except GitFailed:
            return None
        message = await self.git.run("show", "-s", "--format=%B", told.text.split(" ", 1)[0])
        return changes.blame(told.text, message.text)

    async def release(self, name: str) -> None:
        """Remove the worktree `name`."""
        await asyncio.to_thread(self._removed, name)

    async def close(self) -> None:
        """Remove every worktree of the run; the repository stays."""
        await asyncio.to_thread(tree.remove, self.trees)

    async def _commit_id(self, commit: str) -> str:
        if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", commit):
            raise Invalid(f"{commit!r} is not a commit id.", code="commit_invalid")
        known = await self.git.run("cat-file", "-e", f"{commit}^{{commit}}", ok=(0, 1, 128))
        if known.code != 0:
            raise NotFound(f"The repository of project {self.project_id} holds no commit {commit}.")
        return commit

    async def _bodies(self, commit: str, paths: Sequence[str]) -> dict[str, str]:
        """Read many small files with one call of git."""
        asked = "".join(f"{commit}:{path}\n" for path in paths if "\n" not in path).encode()
        answer = (await self.git.run("cat-file", "--batch", stdin=asked, limit=64_000_000)).stdout
        bodies: dict[str, str] = {}
        at = 0
        for path in (path for path in paths if "\n" not in path):
            end = answer.find(b"\n", at)
            head = answer[at:end].split(b" ")
            at = end + 1
            if end < 0 or len(head) != 3 or not head[2].isdigit():
                continue
            size = int(head[2])
            bodies[path] = answer[at : at + size].decode("utf-8", "replace")
            at += size + 1
        return bodies

    async def _write_tree(self, worktree: Worktree) -> str:
        path = Path(worktree.path)
        if path.parent != self.trees:
            raise Invalid(f"{path} is no worktree of this run.", code="worktree_invalid")
        await asyncio.to_thread(_ready_to_commit, path, self._index(path.name))
        env = self._env(path)
        if not self._index(path.name).exists():
            await self.git.run("read-tree", worktree.base, env=env)
        await self.git.run("add", "--all", env=env)
        return (await self.git.run("write-tree", env=env)).text

    async def _commit_tree(
        self, written: str, parents: Sequence[str], author: Role, message: str, trailers: Mapping[str, str]
    ) -> str:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S+0000")
        who = {"NAME": author.value, "EMAIL": f"{author.value}@company", "DATE": now}
        env = {f"GIT_{part}_{key}": value for part in ("AUTHOR", "COMMITTER") for key, value in who.items()}
        options = [word for parent in parents for word in ("-p", parent)]
        text = changes.message_with(message, trailers).encode("utf-8", "replace")
        return (await self.git.run("commit-tree", written, *options, "-F", "-", stdin=text, env=env)).text

    def _env(self, path: Path) -> dict[str, str]:
        return {"GIT_WORK_TREE": str(path), "GIT_INDEX_FILE": str(self._index(path.name))}

    def _index(self, name: str) -> Path:
        return self.trees / f".{name}.index"

    def _path(self, name: str) -> Path:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", name) or name.endswith(".lock"):
            raise Invalid(f"{name!r} cannot name a worktree: use letters, digits, dots and dashes.")
        return self.trees / name

    def _emptied(self, name: str) -> Path:
        path = self._path(name)
        self._removed(name)
        path.mkdir(parents=True)
        return path.resolve()

    def _removed(self, name: str) -> None:
        tree.remove(self._path(name))
        index = self._index(name)
        index.unlink(missing_ok=True)
        index.with_name(index.name + ".lock").unlink(missing_ok=True)


def _ready_to_commit(path: Path, index: Path) -> None:
    if not path.is_dir():
        raise NotFound(f"The worktree {path.name!r} is gone. Check it out again.")
    index.with_name(index.name + ".lock").unlink(missing_ok=True)
    tree.drop_repositories(path)
    tree.check(path)


def _inside(path: str) -> str:
    pure = PurePosixPath(path)
    if not pure.parts or "\0" in path or pure.is_absolute() or ".." in pure.parts:
        raise Invalid(f"{path!r} is not a path inside the repository.", code="path_invalid")
    return str(pure)
