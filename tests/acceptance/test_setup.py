"""`make setup` on machines that lack something: each lack is a sentence, and nothing half made is taken for whole."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ("sh", "cat", "cksum", "dirname", "mkdir", "rm", "grep", "sed", "expand", "make")


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A copy of what the set-up reads, and a PATH with a shell's tools and nothing else."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("requirements", ".ci"):
        shutil.copytree(ROOT / name, checkout / name)
    for name in ("pyproject.toml", "Makefile"):
        shutil.copy(ROOT / name, checkout)
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / "bin" / tool).symlink_to(found)
    return checkout


def program(bare: Path, name: str, script: str) -> None:
    path = bare.parent / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def setup(bare: Path) -> subprocess.CompletedProcess[str]:
    path = str(bare.parent / "bin")
    return subprocess.run(
        [f"{path}/make", "setup"], cwd=bare, env={"PATH": path}, capture_output=True, text=True, check=False
    )


def test_a_machine_without_python_is_told_what_is_needed(bare: Path) -> None:
    done = setup(bare)
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed" in done.stderr


def test_a_python_that_is_too_old_counts_as_none(bare: Path) -> None:
    program(bare, "python3", "exit 1")
    done = setup(bare)
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed" in done.stderr


def test_a_python_without_venv_is_told_what_to_install(bare: Path) -> None:
    complaint = "The virtual environment was not created successfully because ensurepip is not available."
    program(bare, "python3", f'[ "$1" = -m ] || exec {sys.executable} "$@"\nmkdir .venv; echo "{complaint}"; exit 1')
    done = setup(bare)
    assert done.returncode != 0
    assert complaint in done.stderr
    assert "apt install\npython3-venv" in done.stderr
    assert not (bare / ".venv").exists()


def test_packages_that_cannot_be_fetched_leave_no_stamp(bare: Path) -> None:
    python = f'case "$*" in *pip*) echo "no network" >&2; exit 1;; esac\nexec {sys.executable} "$@"'
    making = 'mkdir -p .venv/bin; cp "$0" .venv/bin/python; exit 0'
    program(bare, "python3", f'[ "$1 $2" = "-m venv" ] && {{ {making}; }}\n{python}')
    (bare.parent / "bin" / "cp").symlink_to(str(shutil.which("cp")))
    for _ in range(2):
        done = setup(bare)
        assert done.returncode != 0
        assert "no network" in done.stderr
        assert "did not finish" in done.stderr
        assert not list((bare / ".venv").glob(".setup-*"))


def test_a_set_up_that_is_done_is_not_done_again(bare: Path) -> None:
    making = 'mkdir -p .venv/bin; cp "$0" .venv/bin/python; exit 0'
    program(bare, "python3", f'[ "$1 $2" = "-m venv" ] && {{ {making}; }}\ntrue')
    (bare.parent / "bin" / "cp").symlink_to(str(shutil.which("cp")))
    first, second = setup(bare), setup(bare)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert "Setting up" in first.stderr
    assert second.stderr == ""
    (bare / "requirements" / "dev.lock").write_text("changed")
    assert "Setting up" in setup(bare).stderr
    moved = bare.with_name("moved")
    bare.rename(moved)
    assert "Setting up" in setup(moved).stderr
