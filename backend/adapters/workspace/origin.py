"""Where a project's repository comes from and goes to: a scaffold, or a remote that is fetched and pushed to."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from backend.adapters.workspace import tree
from backend.adapters.workspace.git import Git, GitFailed, check_remote, without_credentials
from backend.domain.config import WorkspaceConfig
from backend.errors import Forbidden, Invalid, Unavailable

_SECONDS = 600.0
_IGNORED = "__pycache__/\n*.py[cod]\n.pytest_cache/\n.coverage\n.venv/\nnode_modules/\n*.egg-info/\ndist/\nbuild/\n"
_ATTRIBUTES = "* -text -filter -ident !working-tree-encoding -export-subst -export-ignore !diff !merge\n"


class Origin:
    """Makes the bare repository, once, however many ask and wherever the last attempt was killed."""

    def __init__(self, git_dir: Path, project_id: UUID) -> None:
        """Take care of the repository at `git_dir`."""
        self.git_dir = git_dir
        self.project_id = project_id
        self.git = Git(git_dir)

    async def prepare(self, config: WorkspaceConfig) -> str:
        """Return the head of the configured branch, after making the repository where it is not there."""
        if not await asyncio.to_thread((self.git_dir / "HEAD").is_file):
            await self._make(config)
        head = await self.git.run("rev-parse", "--verify", "--quiet", f"refs/heads/{config.branch}", ok=(0, 1))
        if head.code != 0:
            raise Invalid(f"The repository has no branch {config.branch!r}. Name one it has in /workspace/branch.")
        return head.text

    async def push(self, config: WorkspaceConfig, branch: str, commit: str) -> str | None:
        """Push a commit to a branch of the remote, without force; return why the remote did not take it.

        A branch that already holds the commit, by an earlier push whose answer was lost, is as good as pushed.
        """
        if not config.push or config.remote is None:
            raise Forbidden("This run may not push: set /workspace/push and /workspace/remote if it should.")
        remote = check_remote(config.remote)
        try:
            await self.git.run("push", "--quiet", "--", remote, f"{commit}:refs/heads/{branch}", seconds=_SECONDS)
        except (GitFailed, Unavailable) as failed:
            if await self._holds(remote, branch, commit):
                return None
            return f"The branch {branch!r} could not be pushed to {without_credentials(remote)}: {failed.message}"
        return None

    async def _holds(self, remote: str, branch: str, commit: str) -> bool:
        """Whether a branch of the remote holds a commit, perhaps with newer ones on top."""
        seen = f"refs/pushed/{uuid.uuid4().hex}"
        spec = f"refs/heads/{branch}:{seen}"
        try:
            await self.git.run("fetch", "--quiet", "--no-tags", "--no-auto-gc", "--", remote, spec, seconds=_SECONDS)
            held = await self.git.run("merge-base", "--is-ancestor", commit, seen, ok=(0, 1))
            await self.git.run("update-ref", "-d", seen)
        except (GitFailed, Unavailable):
            return False
        return held.code == 0

    async def _make(self, config: WorkspaceConfig) -> None:
        """Build the repository beside its place, then rename it there: nobody ever sees half of one."""
        draft = self.git_dir.with_name(f".{self.git_dir.name}.{uuid.uuid4().hex}")
        try:
            await asyncio.to_thread(draft.parent.mkdir, parents=True, exist_ok=True)
            git = Git(draft)
            await git.run("init", "--bare", "--quiet", str(draft))
            await asyncio.to_thread(_own_rules, draft)
            if config.source == "remote":
                await self._fetch(git, config)
            else:
                await self._scaffold(git, config.branch)
            await git.run("symbolic-ref", "HEAD", f"refs/heads/{config.branch}")
            with contextlib.suppress(OSError):  # another worker was first: its repository counts
                await asyncio.to_thread(draft.rename, self.git_dir)
        finally:
            await asyncio.to_thread(tree.remove, draft)

    async def _fetch(self, git: Git, config: WorkspaceConfig) -> None:
        if not config.remote:
            raise Invalid("The workspace's source is a remote, but none is named. Set /workspace/remote.")
        remote = check_remote(config.remote)
        spec = f"+refs/heads/{config.branch}:refs/heads/{config.branch}"
        try:
            await git.run("fetch", "--quiet", "--no-tags", "--no-auto-gc", "--", remote, spec, seconds=_SECONDS)
        except GitFailed as failed:
            shown = without_credentials(remote)
            raise Unavailable(
                f"The branch {config.branch!r} could not be fetched from {shown}: {failed.message}", code="fetch_failed"
            ) from failed

    async def _scaffold(self, git: Git, branch: str) -> None:
        """Make the first commit of an empty project, the same bytes however often it is made."""
        ignored = (await git.run("hash-object", "-w", "--stdin", stdin=_IGNORED.encode())).text
        listing = f"100644 blob {ignored}\t.gitignore\n".encode()
        written = (await git.run("mktree", stdin=listing)).text
        when = {f"GIT_{who}_DATE": _born(self.project_id) for who in ("AUTHOR", "COMMITTER")}
        who = {f"GIT_{who}_{key}": value for who in ("AUTHOR", "COMMITTER") for key, value in _COMPANY.items()}
        commit = await git.run("commit-tree", written, "-F", "-", stdin=b"Begin the project\n", env={**when, **who})
        await git.run("update-ref", f"refs/heads/{branch}", commit.text)


_COMPANY = {"NAME": "company", "EMAIL": "company@company"}


def _own_rules(git_dir: Path) -> None:
    """Neutralise attributes that run programs or change bytes, and never commit what tools leave behind."""
    info = git_dir / "info"
    info.mkdir(exist_ok=True)
    (info / "attributes").write_text(_ATTRIBUTES)
    (info / "exclude").write_text("__pycache__/\n*.pyc\n.pytest_cache/\n.coverage\nnode_modules/\n.venv/\n")


def _born(project_id: UUID) -> str:
    """Return when a project was made, as its UUIDv7 says; a fixed day for ids of another kind."""
    seconds = (project_id.int >> 80) / 1000 if project_id.version == 7 else 1_577_836_800
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S+0000")
