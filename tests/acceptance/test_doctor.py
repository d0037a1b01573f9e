"""`company doctor` tells the truth about servers that are there, half there, away or not what they should be."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from backend.adapters.db.engine import Sessions, connect
from backend.engine import doctor, health
from backend.engine.health import Check
from backend.settings import Settings
from tests.conftest import MakeRun, embedded_settings

NOBODY_THERE = "127.0.0.1:1"


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


async def test_a_healthy_company_is_called_healthy(settings: Settings, engine: AsyncEngine) -> None:
    assert settings.redis_url is not None
    settings.home.mkdir()
    checks = await health.essentials(engine, settings.redis_url.get_secret_value(), settings.home)
    # The servers of the tests run without fsync, and that is said too.
    assert {check.name: check.status for check in checks} == {"database": "warn", "broker": "ok", "storage": "ok"}
    assert "fsync off" in checks[0].sentence
    assert not health.failed(checks)
    assert list(settings.home.iterdir()) == []


async def test_a_database_that_is_away_is_named_without_its_password() -> None:
    engine = connect(f"postgresql://ada:s3cret@{NOBODY_THERE}/company")
    check = await health.database(engine)
    await engine.dispose()
    assert (check.status, check.name) == ("fail", "database")
    assert "cannot be reached" in check.sentence
    assert "DATABASE_URL" in str(check.advice)
    assert "s3cret" not in repr(check)


async def test_a_broker_that_is_away_is_named_without_its_password() -> None:
    check = await health.broker(f"redis://:s3cret@{NOBODY_THERE}/0")
    assert check.status == "fail"
    assert "cannot be reached" in check.sentence
    assert "s3cret" not in repr(check)


async def test_an_empty_database_is_to_be_migrated(empty_database: Callable[[], Awaitable[str]]) -> None:
    engine = connect(await empty_database())
    check = await health.database(engine)
    await engine.dispose()
    assert (check.status, check.advice) == ("fail", "Run `company migrate`.")
    assert "has no tables yet" in check.sentence


async def test_the_api_of_the_release_before_stays_ready_over_the_database_of_a_newer_one(
    engine: AsyncEngine,
) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    check = await health.database(engine)
    assert (check.status, check.advice) == ("warn", "Install the newer release here too.")
    assert "revision 9999" in check.sentence


async def test_books_that_do_not_add_up_are_told(engine: AsyncEngine, sessions: Sessions, make_run: MakeRun) -> None:
    async with sessions.begin() as session:
        await make_run(session, spent_usd=1)
    check = await health.books(engine)
    assert (check.status, check.advice) == ("fail", "Read the view v_ledger_check.")


async def test_books_that_nobody_could_look_through_keep_no_api_from_being_ready(
    engine: AsyncEngine, settings: Settings
) -> None:
    assert settings.redis_url is not None
    settings.home.mkdir()
    assert (await health.books(engine)).status == "ok"
    async with engine.connect() as busy:
        # Whoever rebuilds the table of calls holds up who reads it.
        await busy.execute(text("LOCK TABLE model_calls IN ACCESS EXCLUSIVE MODE"))
        check = await health.books(engine)
        checks = await health.essentials(engine, settings.redis_url.get_secret_value(), settings.home)
    assert (check.status, check.sentence) == ("warn", "The books were not looked through: that takes over 5 s.")
    assert not health.failed(checks)


async def test_every_invariant_is_told_with_what_breaks_it(
    settings: Settings, sessions: Sessions, make_run: MakeRun
) -> None:
    checks = await doctor.examine_rows(settings)
    assert {check.status for check in checks} == {"ok"}
    async with sessions.begin() as session:
        run = await make_run(session, spent_usd=1)
    checks = await doctor.examine_rows(settings)
    broken = {check.name: check.advice or "" for check in checks if check.status == "fail"}
    assert broken.keys() == {"active", "totals", "project-totals"}
    assert f"run_id {run.id}, total_of run, unit usd, booked 1" in broken["totals"]


async def test_rows_that_cannot_be_read_are_no_rows_in_order(
    tmp_path: Path, empty_database: Callable[[], Awaitable[str]]
) -> None:
    nowhere = embedded_settings(tmp_path / "company")
    away = embedded_settings(tmp_path / "company", database_url=f"postgresql://ada:s3cret@{NOBODY_THERE}/company")
    empty = embedded_settings(tmp_path / "company", database_url=await empty_database())
    for settings in (nowhere, away, empty):
        checks = await doctor.examine_rows(settings)
        assert [(check.name, check.status) for check in checks] == [("invariants", "fail")]
        assert "s3cret" not in repr(checks)


async def test_runs_that_nobody_takes_up_are_told(engine: AsyncEngine, sessions: Sessions, make_run: MakeRun) -> None:
    async with sessions.begin() as session:
        run = await make_run(session)
        await session.execute(text("UPDATE project_runs SET queued_at = now() - interval '1 hour'"))
        assert run.status == "QUEUED"
    check = await health.books(engine)
    assert (check.status, check.advice) == ("warn", "Read the view v_stuck_runs.")


def test_a_storage_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for impossible in (Path("/proc"), tmp_path / "file", tmp_path / "file" / "company"):
        check = health.storage(impossible)
        assert (check.status, check.sentence.split(":")[0]) == (
            "fail",
            f"The state directory {impossible} cannot be written",
        )


def test_a_storage_that_is_not_there_yet_is_judged_by_its_disk_and_not_made(tmp_path: Path) -> None:
    assert health.storage(tmp_path / "not" / "there" / "yet").status == "ok"
    assert list(tmp_path.iterdir()) == []


async def test_no_worker_is_said(settings: Settings) -> None:
    assert settings.redis_url is not None
    check = await health.workers(settings.redis_url.get_secret_value())
    assert (check.status, check.sentence) == ("warn", "No worker tells of itself.")


async def test_a_company_that_is_not_started_is_told_what_would_be(tmp_path: Path) -> None:
    checks = by_name(await doctor.servers(embedded_settings(tmp_path / "company")))
    assert {name: check.status for name, check in checks.items()} == {
        "database": "ok",
        "broker": "ok",
        "storage": "ok",
    }
    assert "would start PostgreSQL" in checks["database"].sentence
    assert list(tmp_path.iterdir()) == []


async def test_data_of_another_major_version_are_told_before_anything_is_started(tmp_path: Path) -> None:
    data = tmp_path / "embedded" / "postgres"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("16\n")
    check = by_name(await doctor.servers(embedded_settings(tmp_path)))["database"]
    assert (check.status, "was written by PostgreSQL 16" in check.sentence) == ("fail", True)


async def test_every_part_is_told_in_a_sentence(tmp_path: Path) -> None:
    checks = await doctor.examine(embedded_settings(tmp_path / "company"))
    assert {check.name for check in checks} >= {
        "python",
        "git",
        "database",
        "broker",
        "storage",
        "sandbox",
        "scanners",
        "linters",
        "models",
        "graphs",
    }
    assert all(check.sentence.endswith(".") for check in checks)
    assert all(check.advice for check in checks if check.status == "warn")
