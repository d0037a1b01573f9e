"""The tools in a real worktree and the real sandbox; hostile arguments stay observations."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from backend.adapters.sandbox import Sandbox
from backend.adapters.toolbox.worktree import WorktreeToolbox
from backend.adapters.workspace import GitWorkspace
from backend.domain.config import ChecksConfig, RunConfig, SandboxConfig, WorkspaceConfig
from backend.domain.ports import Observation, ScanReport, TestReport
from backend.domain.role import Role

COMMANDS: list[dict[str, Any]] = []


class NoChecks:
    """Checks that are never asked."""

    async def test(
        self, commit: str, config: ChecksConfig, *, accepted_tests: Mapping[str, str], only: Sequence[str] = ()
    ) -> TestReport:
        return TestReport(True, (), (), 0, 0.0, None, f"tests of {commit[:4]}", "")

    async def scan(self, commit: str, config: ChecksConfig) -> ScanReport:
        raise NotImplementedError

    async def lint_deploy(self, commit: str, config: ChecksConfig) -> ScanReport:
        raise NotImplementedError


async def note(command: dict[str, Any]) -> None:
    COMMANDS.append(command)


@pytest.fixture
async def toolbox(tmp_path: Path) -> WorktreeToolbox:
    return await make(tmp_path, Role.DEVELOPER)


async def make(home: Path, role: Role) -> WorktreeToolbox:
    COMMANDS.clear()
    workspace = GitWorkspace(home, uuid4(), uuid4())
    tree = await workspace.checkout("dev", await workspace.prepare(WorkspaceConfig()))
    (Path(tree.path) / "shop").mkdir()
    (Path(tree.path) / "shop" / "cart.py").write_text("def total(items):\n    return sum(items)\n")
    sandbox = await Sandbox.detect(SandboxConfig())
    return WorktreeToolbox(
        role, tree, workspace=workspace, sandbox=sandbox, config=RunConfig(), checks=NoChecks(), on_command=note
    )


async def test_files_are_listed_searched_and_read(toolbox: WorktreeToolbox) -> None:
    assert (await toolbox.call("list_files", {})).text == ".gitignore\nshop/\nshop/cart.py"
    assert (await toolbox.call("list_files", {"depth": 1})).text == ".gitignore\nshop/"
    found = await toolbox.call("search", {"regex": r"return \w+", "glob": "**/*.py"})
    assert found == Observation("shop/cart.py:2: return sum(items)")
    read = await toolbox.call("read_file", {"path": "shop/cart.py", "start": 2})
    assert read == Observation("     2      return sum(items)")


async def test_a_long_file_is_read_in_parts(toolbox: WorktreeToolbox) -> None:
    (toolbox.root / "long.txt").write_text("".join(f"line {n}\n" for n in range(1, 1001)))
    part = await toolbox.call("read_file", {"path": "long.txt", "start": 100, "end": 900})
    assert part.text.splitlines()[0] == "   100  line 100"
    assert part.text.splitlines()[-1] == "(1000 lines in all; go on with start=500)"


async def test_a_change_is_made_and_shown(toolbox: WorktreeToolbox) -> None:
    done = await toolbox.call("str_replace", {"path": "shop/cart.py", "old_str": "sum(items)", "new_str": "0"})
    assert done.ok
    assert "     2      return 0" in done.text
    assert (toolbox.root / "shop" / "cart.py").read_text() == "def total(items):\n    return 0\n"
    assert "+    return 0" in await toolbox.pending_diff()


async def test_python_that_does_not_parse_is_not_written(toolbox: WorktreeToolbox) -> None:
    for name, arguments in (
        ("write_file", {"path": "new.py", "content": "def f(:\n"}),
        ("str_replace", {"path": "shop/cart.py", "old_str": "(items):", "new_str": "(items:"}),
    ):
        refused = await toolbox.call(name, arguments)
        assert (refused.ok, refused.malformed) == (False, False)
        assert "would not parse" in refused.text
    assert not (toolbox.root / "new.py").exists()
    assert "def total(items):" in (toolbox.root / "shop" / "cart.py").read_text()


async def test_a_long_file_is_rewritten_only_after_two_failures(toolbox: WorktreeToolbox) -> None:
    (toolbox.root / "long.txt").write_text("x\n" * 500)
    assert not (await toolbox.call("write_file", {"path": "long.txt", "content": "y"})).ok
    for _ in range(2):
        await toolbox.call("str_replace", {"path": "long.txt", "old_str": "zzz", "new_str": "y"})
    assert (await toolbox.call("write_file", {"path": "long.txt", "content": "y"})).ok


async def test_a_file_is_deleted_once(toolbox: WorktreeToolbox) -> None:
    assert (await toolbox.call("delete_file", {"path": "shop/cart.py"})).ok
    assert not (await toolbox.call("delete_file", {"path": "shop/cart.py"})).ok


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../secret",
        "shop/../../secret",
        "link",
        "folder/secret",
        ".git/config",
        ".GIT/config",
        "a\0b",
        ".",
    ],
)
@pytest.mark.parametrize("tool", ["read_file", "str_replace", "write_file", "delete_file"])
async def test_nothing_outside_the_worktree_is_touched(toolbox: WorktreeToolbox, path: str, tool: str) -> None:
    outside = toolbox.root.parent
    (outside / "secret").write_text("secret")
    (toolbox.root / "link").symlink_to(outside / "secret")
    (toolbox.root / "folder").symlink_to(outside)
    given = {"str_replace": {"old_str": "secret", "new_str": "x"}, "write_file": {"content": "x"}}
    refused = await toolbox.call(tool, {"path": path, **given.get(tool, {})})
    assert not refused.ok
    assert "secret\n" not in refused.text
    assert (outside / "secret").read_text() == "secret"


async def test_what_is_no_text_file_is_refused_and_never_waited_for(toolbox: WorktreeToolbox) -> None:
    os.mkfifo(toolbox.root / "pipe")
    (toolbox.root / "binary").write_bytes(b"\0\1")
    (toolbox.root / "latin").write_bytes(b"\xff")
    for path in ("pipe", "binary", "latin", "shop", "absent"):
        assert not (await toolbox.call("read_file", {"path": path})).ok
    assert (await toolbox.call("search", {"regex": "nothing here"})).text == "No line matches."


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("no_tool", {}),
        ("submit", {"summary": "x"}),
        ("read_file", {}),
        ("read_file", {"path": 1}),
        ("read_file", {"path": "a", "more": 1}),
        ("run", {"command": ""}),
    ],
)
async def test_a_call_that_does_not_fit_is_malformed(
    toolbox: WorktreeToolbox, name: str, arguments: dict[str, Any]
) -> None:
    assert (await toolbox.call(name, arguments)).malformed


async def test_a_role_has_only_its_own_tools(tmp_path: Path) -> None:
    lead = await make(tmp_path, Role.LEAD)
    assert (await lead.call("read_file", {"path": "shop/cart.py"})).ok
    for name in ("run", "write_file", "run_tests"):
        assert (await lead.call(name, {})).malformed


async def test_a_command_runs_and_is_told_of(toolbox: WorktreeToolbox) -> None:
    done = await toolbox.call("run", {"command": "python3 -c 'print(6 * 7)'"})
    assert done.ok
    assert done.text.endswith("--- stdout\n42")
    failed = await toolbox.call("run", {"command": "exit 4"})
    assert (failed.ok, failed.text.split(",")[0]) == (False, "exit code 4")
    assert "(no output)" in failed.text
    assert [command["exit_code"] for command in COMMANDS] == [0, 4]


async def test_a_long_observation_is_cut_in_the_middle(toolbox: WorktreeToolbox) -> None:
    done = await toolbox.call("run", {"command": "seq 1 100000"})
    assert len(done.text) <= 10_000
    assert "characters left out" in done.text
    assert done.text.endswith("100000")


async def test_tests_run_on_a_snapshot_of_the_tree(toolbox: WorktreeToolbox) -> None:
    done = await toolbox.call("run_tests", {"ids": []})
    assert done.text.startswith("GREEN")
    assert len(COMMANDS) == 1


async def test_bad_expressions_are_answered(toolbox: WorktreeToolbox) -> None:
    assert "wrong" in (await toolbox.call("search", {"regex": "("})).text
