"""Archives and stored bodies: deterministic, whole, and closed to hostile names."""

from __future__ import annotations

import asyncio
import io
import tarfile
import zipfile
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from backend.adapters.artifacts import ArtifactStore
from backend.adapters.export import archive, remove_project, remove_run
from backend.adapters.workspace import GitWorkspace
from backend.domain.config import WorkspaceConfig
from backend.domain.role import Role
from backend.errors import Invalid, NotFound, Unavailable


async def built(tmp_path: Path) -> tuple[GitWorkspace, str]:
    workspace = GitWorkspace(tmp_path, uuid4(), uuid4())
    tree = await workspace.checkout("dev", await workspace.prepare(WorkspaceConfig()))
    root = Path(tree.path)
    (root / "pkg").mkdir()
    (root / "pkg" / "ü.py").write_text("A = 1\n")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "link").symlink_to("pkg/ü.py")
    return workspace, await workspace.commit(tree, author=Role.DEVELOPER, message="x", trailers={})


async def test_an_archive_holds_the_commit_and_is_the_same_every_time(tmp_path: Path) -> None:
    workspace, commit = await built(tmp_path)
    zipped = await archive(workspace, commit, "zip", top="shop")
    tarred = await archive(workspace, commit, "tar.gz", top="shop")
    assert zipped == await archive(workspace, commit, "zip", top="shop")
    assert tarred == await archive(workspace, commit, "tar.gz", top="shop")
    names = ["shop/.gitignore", "shop/link", "shop/pkg/ü.py", "shop/run.sh"]
    with zipfile.ZipFile(io.BytesIO(zipped)) as packed:
        assert sorted(packed.namelist()) == names
        assert packed.read("shop/pkg/ü.py") == b"A = 1\n"
        assert packed.getinfo("shop/run.sh").external_attr >> 16 & 0o111
    with tarfile.open(fileobj=io.BytesIO(tarred)) as packed_tar:
        assert sorted(packed_tar.getnames()) == names
        assert packed_tar.getmember("shop/link").linkname == "pkg/ü.py"


@pytest.mark.parametrize(("path", "mode"), [("a\\..\\b", "100644"), ("C:x", "100644"), ("line\nend", "100644")])
async def test_a_dangerous_name_is_refused(tmp_path: Path, path: str, mode: str) -> None:
    workspace, commit = await raw_tree(tmp_path, path, mode, b"x")
    with pytest.raises(Invalid, match="archive"):
        await archive(workspace, commit, "zip", top="shop")


@pytest.mark.parametrize("target", [b"/etc/passwd", b"../x", b"a/../../x"])
async def test_a_link_that_leads_out_is_left_out(tmp_path: Path, target: bytes) -> None:
    workspace, commit = await raw_tree(tmp_path, "link", "120000", target)
    with tarfile.open(fileobj=io.BytesIO(await archive(workspace, commit, "tar.gz", top="shop"))) as packed:
        assert packed.getnames() == []


async def raw_tree(tmp_path: Path, path: str, mode: str, body: bytes) -> tuple[GitWorkspace, str]:
    workspace = GitWorkspace(tmp_path, uuid4(), uuid4())
    await workspace.prepare(WorkspaceConfig())
    blob = (await workspace.git.run("hash-object", "-w", "--stdin", stdin=body)).text
    made = await workspace.git.run("mktree", "-z", stdin=f"{mode} blob {blob}\t{path}\0".encode())
    who = {f"GIT_{part}_{key}": "x" for part in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    return workspace, (await workspace.git.run("commit-tree", made.text, "-m", "x", env=who)).text


async def test_unknown_commits_and_odd_folders_are_refused(tmp_path: Path) -> None:
    workspace, commit = await built(tmp_path)
    with pytest.raises(NotFound):
        await archive(workspace, "0" * 40, "zip", top="shop")
    with pytest.raises(Invalid):
        await archive(workspace, commit, "zip", top="../x")


async def test_removal_leaves_nothing_and_may_be_repeated(tmp_path: Path) -> None:
    workspace, _ = await built(tmp_path)
    run_id = workspace.trees.name
    for _ in range(2):
        await remove_project(tmp_path, workspace.project_id)
        await remove_run(tmp_path, UUID(run_id))
    assert [list((tmp_path / name).iterdir()) for name in ("repositories", "worktrees")] == [[], []]


async def test_a_body_is_stored_once_and_checked_when_it_is_read(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    stored = await asyncio.gather(*(store.put(b"body") for _ in range(20)))
    assert len(set(stored)) == 1
    assert await store.get(stored[0].sha256) == b"body"
    files = [path for path in store.root.rglob("*") if path.is_file()]
    assert len(files) == 1
    files[0].write_bytes(b"evil")
    with pytest.raises(Unavailable, match="damaged"):
        await store.get(stored[0].sha256)
    await store.delete(stored[0].sha256)
    await store.delete(stored[0].sha256)
    with pytest.raises(NotFound):
        await store.get(stored[0].sha256)
    with pytest.raises(Invalid):
        await store.get("../../etc/passwd")
