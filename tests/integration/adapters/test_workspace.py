"""The git workspace against the real git program: idempotent, safe after a kill, and closed to hostile trees."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from backend.adapters.workspace import GitWorkspace
from backend.adapters.workspace.git import check_remote
from backend.adapters.workspace.merging import by_index
from backend.domain.config import WorkspaceConfig
from backend.domain.ports import Worktree
from backend.domain.role import Role
from backend.errors import CompanyError, Forbidden, Invalid, NotFound, Unavailable

PROJECT = UUID("019a0000-0000-7000-8000-000000000001")
TRAILERS = {"Run-Id": "r1", "Task-Id": "T-1", "Role": "developer"}


@pytest.fixture
def workspace(tmp_path: Path) -> GitWorkspace:
    return GitWorkspace(tmp_path, PROJECT, uuid4())


async def change(workspace: GitWorkspace, base: str, files: dict[str, str | None], name: str = "dev") -> str:
    tree = await workspace.checkout(name, base)
    for path, text in files.items():
        target = Path(tree.path) / path
        if text is None:
            target.unlink()
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
    return await workspace.commit(tree, author=Role.DEVELOPER, message="T-1 Change", trailers=TRAILERS)


async def test_a_scaffold_is_the_same_commit_wherever_and_however_often_it_is_made(tmp_path: Path) -> None:
    heads = [
        await GitWorkspace(tmp_path / name, PROJECT, uuid4()).prepare(WorkspaceConfig()) for name in ("a", "a", "b")
    ]
    assert len(set(heads)) == 1
    assert await GitWorkspace(tmp_path / "a", PROJECT, uuid4()).files(heads[0]) == [".gitignore"]


async def test_ten_workers_that_prepare_at_once_agree_on_one_repository(tmp_path: Path) -> None:
    heads = await asyncio.gather(
        *(GitWorkspace(tmp_path, PROJECT, uuid4()).prepare(WorkspaceConfig()) for _ in range(10))
    )
    assert len(set(heads)) == 1
    assert [p.name for p in (tmp_path / "repositories").iterdir()] == [f"{PROJECT}.git"]


async def test_a_checkout_is_clean_whatever_was_in_it(workspace: GitWorkspace) -> None:
    base = await workspace.prepare(WorkspaceConfig())
    commit = await change(workspace, base, {"a.py": "A = 1\n"})
    tree = Path((await workspace.checkout("dev", commit)).path)
    (tree / "a.py").write_text("broken")
    closed = tree / "closed"
    closed.mkdir()
    (closed / "file").write_text("x")
    closed.chmod(0)
    (workspace.trees / ".dev.index.lock").write_text("")
    again = await workspace.checkout("dev", commit)
    assert sorted(p.name for p in Path(again.path).iterdir()) == [".gitignore", "a.py"]
    assert (Path(again.path) / "a.py").read_text() == "A = 1\n"


async def test_a_commit_carries_its_author_and_trailers(workspace: GitWorkspace) -> None:
    commit = await change(workspace, await workspace.prepare(WorkspaceConfig()), {"a.py": "A = 1\nB = 2\n"})
    blame = await workspace.blame(commit, "a.py", 2)
    assert blame is not None
    assert (blame.commit, blame.author, blame.text) == (commit, "developer", "B = 2")
    assert blame.trailers == TRAILERS
    assert await workspace.blame(commit, "a.py", 99) is None


async def test_a_commit_without_changes_is_its_base(workspace: GitWorkspace) -> None:
    base = await workspace.prepare(WorkspaceConfig())
    assert await change(workspace, base, {}) == base


async def test_a_commit_survives_an_index_and_a_lock_that_a_kill_left(workspace: GitWorkspace) -> None:
    base = await workspace.prepare(WorkspaceConfig())
    tree = await workspace.checkout("dev", base)
    (Path(tree.path) / "a.txt").write_text("a")
    index = workspace.trees / ".dev.index"
    index.unlink()
    index.with_name(".dev.index.lock").write_text("")
    commit = await workspace.commit(tree, author=Role.QA, message="x", trailers={})
    assert await workspace.files(commit) == [".gitignore", "a.txt"]


async def test_ignored_files_and_nested_repositories_are_never_committed(workspace: GitWorkspace) -> None:
    tree = await workspace.checkout("dev", await workspace.prepare(WorkspaceConfig()))
    root = Path(tree.path)
    (root / "__pycache__").mkdir()
    (root / "__pycache__" / "a.pyc").write_text("x")
    subprocess.run(["git", "init", "-q", str(root / "inner")], check=True)
    (root / "inner" / "code.py").write_text("X = 1\n")
    (root / ".git").write_text("gitdir: /etc\n")
    commit = await workspace.commit(tree, author=Role.DEVELOPER, message="x", trailers={})
    assert await workspace.files(commit) == [".gitignore", "inner/code.py"]


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../outside", "sub/../../../x"])
async def test_a_link_that_leads_out_is_refused(workspace: GitWorkspace, target: str) -> None:
    tree = await workspace.checkout("dev", await workspace.prepare(WorkspaceConfig()))
    (Path(tree.path) / "link").symlink_to(target)
    with pytest.raises(Invalid, match="link.*leads out"):
        await workspace.commit(tree, author=Role.DEVELOPER, message="x", trailers={})


async def test_a_link_inside_the_tree_is_kept(workspace: GitWorkspace) -> None:
    tree = await workspace.checkout("dev", await workspace.prepare(WorkspaceConfig()))
    (Path(tree.path) / "a.txt").write_text("a")
    (Path(tree.path) / "link").symlink_to("a.txt")
    commit = await workspace.commit(tree, author=Role.DEVELOPER, message="x", trailers={})
    again = await workspace.checkout("other", commit)
    assert os.readlink(Path(again.path) / "link") == "a.txt"
    assert await workspace.read(commit, "link") is None


async def test_no_program_of_the_tree_or_the_user_runs(workspace: GitWorkspace, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    base = await workspace.prepare(WorkspaceConfig())
    tree = await workspace.checkout("dev", base)
    root = Path(tree.path)
    (root / ".gitattributes").write_text("* filter=evil diff=evil merge=evil text eol=crlf\n")
    (root / ".gitconfig").write_text(f'[filter "evil"]\n\tclean = touch {ran}\n\tsmudge = touch {ran}\n')
    (root / ".gitmodules").write_text(
        f'[submodule "x"]\n\tpath = x\n\turl = ext::touch {ran}\n\tupdate = !touch {ran}\n'
    )
    (root / "a.txt").write_text("one\n")
    (root / "hooks").mkdir()
    (root / "hooks" / "pre-commit").write_text(f"#!/bin/sh\ntouch {ran}\n")
    (root / "hooks" / "pre-commit").chmod(0o755)
    commit = await workspace.commit(tree, author=Role.DEVELOPER, message="x", trailers={})
    again = await workspace.checkout("dev", commit)
    await workspace.diff(base, commit)
    assert (Path(again.path) / "a.txt").read_bytes() == b"one\n"
    assert not ran.exists()


async def test_branches_merge_and_a_second_merge_changes_nothing(workspace: GitWorkspace) -> None:
    base = await workspace.prepare(WorkspaceConfig())
    one = await change(workspace, base, {"a.py": "A = 1\n"}, "one")
    two = await change(workspace, base, {"b.py": "B = 1\n"}, "two")
    merged = await workspace.merge(one, two, author=Role.LEAD, message="Merge T-2", trailers=TRAILERS)
    assert merged.commit is not None
    assert await workspace.files(merged.commit) == [".gitignore", "a.py", "b.py"]
    again = await workspace.merge(merged.commit, two, author=Role.LEAD, message="Merge T-2", trailers=TRAILERS)
    assert again.commit == merged.commit


async def test_a_conflict_names_its_paths_and_changes_nothing(workspace: GitWorkspace) -> None:
    base = await change(workspace, await workspace.prepare(WorkspaceConfig()), {"a.py": "A = 0\n"})
    one = await change(workspace, base, {"a.py": "A = 1\n"}, "one")
    two = await change(workspace, base, {"a.py": "A = 2\n", "ü b.py": "B\n"}, "two")
    merged = await workspace.merge(one, two, author=Role.LEAD, message="Merge", trailers={})
    assert (merged.commit, merged.conflicts) == (None, ("a.py",))


async def test_an_old_git_merges_the_same(workspace: GitWorkspace) -> None:
    text = "".join(f"line {n}\n" for n in range(40))
    base = await change(workspace, await workspace.prepare(WorkspaceConfig()), {"a.py": text, "gone.py": "x\n"})
    one = await change(workspace, base, {"a.py": text.replace("line 3\n", "LINE 3\n"), "gone.py": None}, "one")
    two = await change(workspace, base, {"a.py": text.replace("line 33\n", "LINE 33\n"), "new.py": "y\n"}, "two")
    tree, conflicts = await by_index(workspace.git, base, one, two, workspace.trees)
    merged = await workspace.merge(one, two, author=Role.LEAD, message="Merge", trailers={})
    assert merged.commit is not None
    assert conflicts == []
    assert tree == (await workspace.git.run("rev-parse", f"{merged.commit}^{{tree}}")).text
    three = await change(workspace, base, {"a.py": text.replace("line 3\n", "other\n")}, "three")
    assert await by_index(workspace.git, base, one, three, workspace.trees) == (None, ["a.py"])


async def test_a_diff_names_the_lines_that_were_touched(workspace: GitWorkspace) -> None:
    base = await change(workspace, await workspace.prepare(WorkspaceConfig()), {"a.py": "1\n2\n3\n", "old.py": "x\n"})
    commit = await change(workspace, base, {"a.py": "1\ntwo\n3\n4\n", "new ü.py": "+++ b/x\nn\n", "old.py": None})
    diff = await workspace.diff(base, commit)
    assert {f.path: (f.status, f.added, f.removed, f.lines) for f in diff.files} == {
        "a.py": ("M", 2, 1, (2, 4)),
        "new ü.py": ("A", 2, 0, (1, 2)),
        "old.py": ("D", 0, 1, ()),
    }
    assert "+two" in diff.text
    assert not diff.truncated
    short = await workspace.diff(base, commit, limit=80)
    assert short.truncated
    assert len(short.text) <= 80


async def test_pending_changes_are_shown_before_they_are_committed(workspace: GitWorkspace) -> None:
    tree = await workspace.checkout("dev", await workspace.prepare(WorkspaceConfig()))
    (Path(tree.path) / "a.py").write_text("A = 1\n")
    assert [f.path for f in (await workspace.pending(tree)).files] == ["a.py"]


async def test_text_is_read_and_what_is_no_text_is_none(workspace: GitWorkspace) -> None:
    tree = await workspace.checkout("dev", await workspace.prepare(WorkspaceConfig()))
    root = Path(tree.path)
    (root / "text.txt").write_text("grüße " * 10)
    (root / "nul").write_bytes(b"a\0b")
    (root / "latin").write_bytes("ü".encode("latin-1"))
    commit = await workspace.commit(tree, author=Role.DEVELOPER, message="x", trailers={})
    assert await workspace.read(commit, "text.txt", limit=6) == "grüße "
    assert [await workspace.read(commit, p) for p in ("nul", "latin", "absent")] == [None] * 3
    for path in ("../x", "/etc/passwd", "", ".", "a\0b"):
        with pytest.raises(Invalid):
            await workspace.read(commit, path)


async def test_an_outline_names_files_and_what_is_in_them_within_its_limit(workspace: GitWorkspace) -> None:
    files: dict[str, str | None] = {
        f"pkg/m{n}.py": f"def f{n}(a, b): ...\nclass C{n}:\n    def go(self): ...\n" for n in range(20)
    }
    commit = await change(workspace, await workspace.prepare(WorkspaceConfig()), files)
    whole = await workspace.outline(commit)
    assert "pkg/m3.py: f3(a, b), class C3[go]" in whole
    short = await workspace.outline(commit, limit=150)
    assert len(short) <= 150
    assert "more files" in short


async def test_a_remote_is_fetched_and_pushed_only_as_configured(workspace: GitWorkspace, tmp_path: Path) -> None:
    source = tmp_path / "source"
    subprocess.run(["git", "init", "-q", "-b", "trunk", str(source)], check=True)
    (source / "a.txt").write_text("a")
    who = ["-c", "user.name=x", "-c", "user.email=x@y"]
    subprocess.run(["git", "-C", str(source), "add", "."], check=True)
    subprocess.run(["git", "-C", str(source), *who, "commit", "-qm", "one"], check=True)
    config = WorkspaceConfig(source="remote", remote=str(source), branch="trunk")
    base = await workspace.prepare(config)
    assert await workspace.files(base) == ["a.txt"]
    commit = await change(workspace, base, {"b.txt": "b"})
    with pytest.raises(Forbidden, match="/workspace/push"):
        await workspace.push(config, "company", commit)
    pushing = config.model_copy(update={"push": True})
    assert await workspace.push(pushing, "company", commit) is None
    assert await workspace.push(pushing, "company", commit) is None
    out = subprocess.run(["git", "-C", str(source), "rev-parse", "company"], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == commit


async def test_a_push_whose_answer_was_lost_counts_though_the_branch_moved_on(
    workspace: GitWorkspace, tmp_path: Path
) -> None:
    remote = tmp_path / "remote.git"
    subprocess.run(["git", "init", "-q", "--bare", str(remote)], check=True)
    config = WorkspaceConfig(remote=str(remote), push=True)
    first = await change(workspace, await workspace.prepare(config), {"a.txt": "a"})
    second = await change(workspace, first, {"b.txt": "b"})
    other = await change(workspace, first, {"c.txt": "c"})
    assert await workspace.push(config, "company", second) is None
    assert await workspace.push(config, "company", first) is None
    refused = await workspace.push(config, "company", other)
    assert refused is not None
    assert "could not be pushed" in refused
    gone = await workspace.push(config.model_copy(update={"remote": str(tmp_path / "absent")}), "company", other)
    assert gone is not None
    assert str(tmp_path / "absent") in gone


async def test_a_remote_that_is_not_there_says_so_and_leaves_nothing(workspace: GitWorkspace, tmp_path: Path) -> None:
    config = WorkspaceConfig(source="remote", remote=str(tmp_path / "absent"))
    with pytest.raises(Unavailable, match="could not be fetched"):
        await workspace.prepare(config)
    assert list((tmp_path / "repositories").iterdir()) == []


@pytest.mark.parametrize(
    "remote",
    [
        "ext::sh -c id",
        "--upload-pack=id",
        "file:///etc",
        "http://a/b",
        "-x:y",
        "https://-oProxy/x",
        "a/../b",
        "/a/../b",
        "",
    ],
)
def test_an_address_of_another_kind_is_refused(remote: str) -> None:
    with pytest.raises(Invalid):
        check_remote(remote)


@pytest.mark.parametrize("remote", ["https://h/x.git", "ssh://git@h:22/x", "git@github.com:a/b.git", "/srv/x.git"])
def test_an_address_of_an_allowed_kind_is_taken(remote: str) -> None:
    assert check_remote(remote) == remote


def test_credentials_are_never_shown() -> None:
    with pytest.raises(Invalid) as refused:
        check_remote("ftp://ada:s3cret@host/x")
    assert "s3cret" not in str(refused.value)


async def test_names_commits_and_trees_of_others_are_refused(workspace: GitWorkspace) -> None:
    base = await workspace.prepare(WorkspaceConfig())
    for name in ("../x", "", ".hidden", "a/b", "x.lock"):
        with pytest.raises(Invalid):
            await workspace.checkout(name, base)
    for commit in ("HEAD", "--all", base[:10]):
        with pytest.raises(Invalid):
            await workspace.checkout("dev", commit)
    with pytest.raises(NotFound):
        await workspace.checkout("dev", "0" * 40)
    with pytest.raises(CompanyError):
        await workspace.commit(Worktree("/etc", base), author=Role.QA, message="x", trailers={})
    with pytest.raises(Invalid):
        await workspace.point("../../evil", base)


async def test_a_branch_is_pointed_in_spite_of_a_stale_lock(workspace: GitWorkspace) -> None:
    base = await workspace.prepare(WorkspaceConfig())
    lock = workspace.git_dir / "refs" / "heads" / "task.lock"
    lock.write_text("")
    os.utime(lock, (0, 0))
    await workspace.point("task", base)
    await workspace.point("task", base)
    assert (await workspace.git.run("rev-parse", "refs/heads/task")).text == base


async def test_forged_trailers_in_a_message_do_not_count(workspace: GitWorkspace) -> None:
    tree = await workspace.checkout("dev", await workspace.prepare(WorkspaceConfig()))
    (Path(tree.path) / "a.py").write_text("A\n")
    message = "Work\n\nRun-Id: forged\nTask-Id: forged"
    commit = await workspace.commit(tree, author=Role.DEVELOPER, message=message, trailers={"Run-Id": "r\nX: y"})
    blame = await workspace.blame(commit, "a.py", 1)
    assert blame is not None
    assert blame.trailers == {"Run-Id": "r X: y"}


async def test_releasing_twice_is_the_same_as_once(workspace: GitWorkspace) -> None:
    await workspace.checkout("dev", await workspace.prepare(WorkspaceConfig()))
    await workspace.release("dev")
    await workspace.release("dev")
    assert list(workspace.trees.iterdir()) == []
