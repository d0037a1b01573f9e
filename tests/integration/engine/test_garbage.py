"""`company gc`: what is kept no longer goes, what an auditor reads stays, and many runs leave little behind."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from backend.adapters.artifacts import ArtifactStore
from backend.adapters.db.tables import Artifact, ProjectRun
from backend.engine.garbage import DAY, Garbage, Heap
from backend.operations import projects
from backend.settings import RetentionSettings
from tests.acceptance.faults import numbers
from tests.integration.engine.conftest import Company

KEPT = ("events", "task_comments", "tasks", "model_calls", "artifacts", "questions", "findings")
PER_RUN = 150_000
"""Bytes of rows that a run of this graph may leave, indexes left out; it leaves about a third of that."""


def garbage(company: Company, home: Path, **keep: int) -> Garbage:
    return Garbage(company.sessions, company.pool, company.bell, home, RetentionSettings(**keep))


async def collect(company: Company, home: Path, *, dry: bool = False, **keep: int) -> dict[str, Heap]:
    return {heap.name: heap for heap in await garbage(company, home, **keep).collect(dry=dry)}


async def ended(company: Company, count: int = 1, **changes: Any) -> list[Any]:
    """Runs that came to their end two months ago."""
    runs = [await company.run(**changes) for _ in range(count)]
    for run in runs:
        await company.executor.execute(run)
    await company.pool.execute("UPDATE project_runs SET ended_at = ended_at - interval '60 days'")
    return runs


async def counts(company: Company, *tables: str) -> list[int]:
    return [await company.pool.fetchval(f"SELECT count(*) FROM {table}") for table in tables]


async def test_an_ended_run_keeps_its_newest_checkpoint_and_all_that_an_auditor_reads(
    company: Company, tmp_path: Path
) -> None:
    (run,) = await ended(company)
    before = await counts(company, *KEPT)
    thick = await counts(company, "checkpoints")
    looked = await collect(company, tmp_path, dry=True)
    assert looked["checkpoints"].count == 1
    assert looked["checkpoints"].size > 0
    assert await counts(company, "checkpoints") == thick
    removed = await collect(company, tmp_path)
    assert removed["checkpoints"] == looked["checkpoints"]
    left = await company.pool.fetch("SELECT checkpoint_id FROM checkpoints WHERE namespace = ''")
    assert [row[0] for row in left] == [(await company.row(run))["head_checkpoint_id"]]
    assert await counts(company, *KEPT) == before
    assert (await collect(company, tmp_path))["checkpoints"].count == 0


@pytest.mark.parametrize("keep", [{"checkpoint_days": 0}, {"checkpoint_days": 90}])
async def test_checkpoints_stay_as_long_as_the_settings_say(
    company: Company, tmp_path: Path, keep: dict[str, int]
) -> None:
    await ended(company)
    before = await counts(company, "checkpoints")
    await collect(company, tmp_path, **keep)
    assert await counts(company, "checkpoints") == before


async def test_a_run_that_keeps_all_its_checkpoints_keeps_them(company: Company, tmp_path: Path) -> None:
    await ended(company, retention={"checkpoints": "all"})
    before = await counts(company, "checkpoints")
    await collect(company, tmp_path)
    assert await counts(company, "checkpoints") == before


async def test_a_project_goes_only_when_it_was_archived_and_the_settings_say_so(
    company: Company, tmp_path: Path
) -> None:
    away, _ = await ended(company, 2)
    project = (await company.row(away))["project_id"]
    await company.operate(projects.archive, project, by="ada")
    await company.pool.execute(
        "UPDATE projects SET archived_at = archived_at - interval '60 days' WHERE id = $1", project
    )
    assert (await collect(company, tmp_path))["archived projects"].count == 0
    assert (await collect(company, tmp_path, archived_days=90))["archived projects"].count == 0
    assert (await collect(company, tmp_path, archived_days=30))["archived projects"].count == 1
    assert await counts(company, "projects", "project_runs") == [1, 1]
    assert await company.pool.fetch("SELECT FROM events WHERE project_id = $1", project) == []


def aged(path: Path, days: float) -> Path:
    os.utime(path, (time.time() - days * DAY,) * 2)
    return path


async def test_files_go_when_they_are_old_and_no_row_names_them(company: Company, tmp_path: Path) -> None:
    (run,) = await ended(company)
    project = (await company.row(run))["project_id"]
    store = ArtifactStore(tmp_path)
    bodies = {name: (await store.put(name.encode())).sha256 for name in ("named", "old", "young")}
    async with company.sessions.begin() as session:
        owner = await session.get_one(ProjectRun, run)
        session.add(
            Artifact(
                tenant_id=owner.tenant_id, run_id=run, kind="file", path="a", media_type="text/plain", size=5,
                sha256=bodies["named"],
            )
        )  # fmt: skip
    mine, gone, fresh = (tmp_path / "repositories" / f"{name}.git" for name in (project, uuid4(), uuid4()))
    for folder in (mine, gone, fresh):
        folder.mkdir(parents=True)
        (folder / "HEAD").write_text("ref: refs/heads/main\n")
    for name in ("named", "old"):
        aged(tmp_path / "artifacts" / bodies[name][:2] / bodies[name], 3)
    aged(mine, 3), aged(gone, 3)
    (tmp_path / "worktrees" / str(run) / "main").mkdir(parents=True)
    looked = await collect(company, tmp_path, dry=True)
    assert {name: looked[name].count for name in ("artifacts", "repositories", "worktrees")} == {
        "artifacts": 1, "repositories": 1, "worktrees": 1
    }  # fmt: skip
    assert gone.exists()
    await collect(company, tmp_path)
    assert [folder.exists() for folder in (mine, gone, fresh)] == [True, False, True]
    left = {path.name for path in (tmp_path / "artifacts").glob("*/*")}
    assert left == {bodies["named"], bodies["young"]}
    assert list((tmp_path / "worktrees").iterdir()) == []


async def test_a_store_may_hold_more_bodies_than_a_statement_has_arguments(company: Company, tmp_path: Path) -> None:
    (run,) = await ended(company)
    folder = tmp_path / "artifacts" / "ff"
    folder.mkdir(parents=True)
    for number in range(33_000):
        (folder / f"{number:064x}").touch()
    async with company.sessions.begin() as session:
        owner = await session.get_one(ProjectRun, run)
        session.add(
            Artifact(
                tenant_id=owner.tenant_id, run_id=run, kind="file", path="a", media_type="text/plain", size=0,
                sha256=f"{7:064x}",
            )
        )  # fmt: skip
    aged(folder / f"{7:064x}", 3), aged(folder / f"{8:064x}", 3)
    assert (await collect(company, tmp_path))["artifacts"].count == 1
    assert (folder / f"{7:064x}").exists()


async def test_a_body_that_is_stored_again_is_young_again(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    digest = (await store.put(b"same")).sha256
    path = aged(tmp_path / "artifacts" / digest[:2] / digest, 3)
    await store.put(b"same")
    assert time.time() - path.stat().st_mtime < DAY


async def test_the_files_of_another_database_are_left_alone(company: Company, tmp_path: Path) -> None:
    foreign = tmp_path / "repositories" / f"{uuid4()}.git"
    foreign.mkdir(parents=True)
    aged(foreign, 30)
    heap = (await collect(company, tmp_path))["repositories"]
    assert heap.count == 0
    assert "another database" in heap.sentence
    assert foreign.exists()


async def test_what_runs_leave_behind_is_bounded(company: Company, tmp_path: Path) -> None:
    runs = 1_000 if numbers.FULL else 20
    tables = [*KEPT, "project_runs", "checkpoints", "checkpoint_writes"]
    await ended(company, runs)
    await collect(company, tmp_path)
    sizes = {
        table: await company.pool.fetchval(f"SELECT coalesce(sum(pg_column_size(t.*)), 0) FROM {table} t")
        for table in tables
    }
    per_run = {table: int(size) // runs for table, size in sizes.items()}
    print(f"\nWhat {runs} runs leave behind, in bytes a run: {sum(per_run.values()):,} {per_run}")
    assert sum(per_run.values()) < PER_RUN
    assert await counts(company, "checkpoints") == [runs]
    assert list(tmp_path.glob("worktrees/*")) == []
