"""The files behind rows: which commit a run has reached, its diff and archive, who wrote a line, and their removal."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters import export
from backend.adapters.db.tables import Artifact, ProjectRun, Task
from backend.adapters.workspace import GitWorkspace
from backend.adapters.workspace.changes import Blame
from backend.domain.ports import Diff
from backend.errors import Conflict, NotFound

EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
"""What git calls the tree without files: the base of a diff that shows everything."""


async def commit_of(session: AsyncSession, run: ProjectRun) -> str:
    """The newest commit that the run has recorded as its result, else the newest that one of its tasks reached.

    Raises `Conflict` while there is none.
    """
    recorded = (
        select(Artifact.commit)
        .where(Artifact.run_id == run.id, Artifact.commit.is_not(None))
        .order_by((Artifact.kind == "repository").desc(), Artifact.created_at.desc())
        .limit(1)
    )
    reached = (
        select(Task.commit)
        .where(Task.run_id == run.id, Task.commit.is_not(None))
        .order_by((Task.status == "DONE").desc(), Task.updated_at.desc())
        .limit(1)
    )
    found = await session.scalar(recorded) or await session.scalar(reached)
    if found is None:
        raise Conflict(f"Run {run.number} has not committed anything yet.", code="no_commit")
    return found


def workspace_of(home: Path, run: ProjectRun) -> GitWorkspace:
    """The git repository of a run's project."""
    return GitWorkspace(home, run.project_id, run.id)


async def diff(home: Path, run: ProjectRun, base: str | None, commit: str) -> Diff:
    """What a commit changed since `base`, or everything in it."""
    _refuse_gone(home, run)
    return await workspace_of(home, run).diff(base or EMPTY_TREE, commit, limit=1_000_000)


async def archive(home: Path, run: ProjectRun, commit: str, form: export.Format) -> bytes:
    """The files of a commit, packed below one folder."""
    _refuse_gone(home, run)
    return await export.archive(workspace_of(home, run), commit, form, top=f"run-{run.number}-{commit[:12]}")


async def blame(home: Path, run: ProjectRun, commit: str, path: str, line: int) -> Blame:
    """Which commit last touched a line of a file, with the trailers that lead to its task and run."""
    _refuse_gone(home, run)
    found = await workspace_of(home, run).blame(commit, path, line)
    if found is None:
        raise NotFound(f"There is no line {line} of {path} in commit {commit[:12]}.")
    return found


async def body_of(home: Path, run: ProjectRun, artifact: Artifact) -> bytes:
    """The body of an artifact from git or the store; raises `NotFound` where it is gone."""
    if artifact.commit is None:
        path = home / "artifacts" / artifact.sha256[:2] / artifact.sha256
        body = await asyncio.to_thread(lambda: path.read_bytes() if path.is_file() else None)
    else:
        _refuse_gone(home, run)
        body = await workspace_of(home, run).read_bytes(artifact.commit, artifact.path)
    if body is None:
        raise NotFound(f"The body of {artifact.path} is not a file in the repository or the artifact store.")
    return body


async def branch_at(home: Path, project_id: UUID, branch: str, commit: str) -> bool:
    """Make a branch of a project's repository point at a commit; False where this machine has no such commit."""
    workspace = GitWorkspace(home, project_id, project_id)
    if not await asyncio.to_thread(workspace.git_dir.is_dir):
        return False
    try:
        await workspace.point(branch, commit)
    except NotFound:
        return False
    return True


def _refuse_gone(home: Path, run: ProjectRun) -> None:
    if not workspace_of(home, run).git_dir.is_dir():
        raise NotFound(f"The repository of run {run.number} is not on this machine.")


async def remove(home: Path, project_id: UUID, run_ids: Sequence[UUID], bodies: Sequence[str]) -> None:
    """Remove a project's repository, its runs' worktrees, and stored bodies; what is not there is no error."""
    for run_id in run_ids:
        await export.remove_run(home, run_id)
    await export.remove_project(home, project_id)
    stored = [home / "artifacts" / body[:2] / body for body in bodies]

    def wipe() -> None:
        for path in stored:
            path.unlink(missing_ok=True)

    await asyncio.to_thread(wipe)
