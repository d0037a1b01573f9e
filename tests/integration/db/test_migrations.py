"""The migrations make exactly what the models say, go back to nothing, and stand being started ten times at once."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from backend.adapters.db import migrate
from backend.adapters.db.engine import connect
from backend.adapters.db.tables import Table

MakeDatabase = Callable[[], Awaitable[str]]

RELATIONS = """
SELECT c.relname, c.relkind::text, obj_description(c.oid, 'pg_class') FROM pg_class c
WHERE c.relnamespace = 'public'::regnamespace AND c.relname <> 'alembic_version' AND c.relkind IN ('r', 'p') ORDER BY 1
"""
COLUMNS = """
SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid),
    col_description(c.oid, a.attnum)
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND c.relname <> 'alembic_version'
ORDER BY 1, 2
"""
CONSTRAINTS = """
SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text <> 'alembic_version' AND contype <> 'n'
ORDER BY 1, 2
"""
INDEXES = """
SELECT tablename, indexname, indexdef FROM pg_indexes
WHERE schemaname = 'public' AND tablename <> 'alembic_version' ORDER BY 1, 2
"""
CHECKS = """
SELECT conrelid::regclass::text, conname, convalidated FROM pg_constraint
WHERE connamespace = 'public'::regnamespace AND contype IN ('c', 'f') ORDER BY 1, 2
"""
UNEXPLAINED = """
SELECT c.relname, a.attname FROM pg_class c
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    AND col_description(c.oid, a.attnum) IS NULL
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND c.relname <> 'alembic_version'
AND (a.attname IS NOT NULL OR obj_description(c.oid, 'pg_class') IS NULL)
"""
UNINDEXED_KEYS = """
SELECT conrelid::regclass::text, conname FROM pg_constraint k
WHERE contype = 'f' AND connamespace = 'public'::regnamespace AND NOT EXISTS (
    SELECT 1 FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
    WHERE i.indrelid = k.conrelid AND i.indkey[0] = k.conkey[1]
    AND coalesce(pg_get_expr(i.indpred, i.indrelid) = format('(%s IS NOT NULL)', a.attname), true))
"""
OBJECTS = """
SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relname NOT LIKE 'alembic_version%'
UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
"""


async def read(url: str, *queries: str) -> list[list[tuple[Any, ...]]]:
    connection = await asyncpg.connect(url)
    try:
        return [[tuple(row) for row in await connection.fetch(query)] for query in queries]
    finally:
        await connection.close()


async def test_the_migrations_and_the_models_make_the_same_database(empty_database: MakeDatabase) -> None:
    migrated, modelled = await empty_database(), await empty_database()
    await migrate.upgrade(migrated)
    engine = connect(modelled)
    async with engine.begin() as connection:
        await connection.run_sync(Table.metadata.create_all)
    await engine.dispose()

    queries = (RELATIONS, COLUMNS, CONSTRAINTS, INDEXES)
    for by_migration, by_models in zip(await read(migrated, *queries), await read(modelled, *queries), strict=True):
        assert by_migration == by_models
        assert by_migration


async def test_alembic_finds_nothing_left_to_migrate(engine: AsyncEngine) -> None:
    def compare(connection: Connection) -> list[Any]:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True, "target_metadata": Table.metadata}
        )
        return list(compare_metadata(context, Table.metadata))

    async with engine.connect() as connection:
        assert await connection.run_sync(compare) == []


async def test_every_table_view_and_column_is_explained(database_url: str) -> None:
    assert await read(database_url, UNEXPLAINED) == [[]]


async def test_every_foreign_key_is_indexed(database_url: str) -> None:
    assert await read(database_url, UNINDEXED_KEYS) == [[]]


async def test_the_indexes_that_queries_need_have_their_names(database_url: str) -> None:
    [indexes] = await read(database_url, "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'")
    definitions = dict(indexes)
    wanted = {
        "idx_project_status_created": "(status, created_at)",
        "idx_run_status_created": "(status, created_at)",
        "idx_task_status_assigned": "(status, assigned_role)",
        "idx_comment_type_agent": "(comment_type, author_role)",
        "idx_comment_task_created": "(task_id, created_at)",
    }
    assert {name: definitions[name].partition("USING btree ")[2] for name in wanted} == wanted


async def test_going_back_to_base_leaves_nothing_and_going_up_again_works(empty_database: MakeDatabase) -> None:
    url = await empty_database()
    await migrate.upgrade(url)
    [before] = await read(url, OBJECTS)
    await migrate.downgrade(url, to="base")
    assert await read(url, OBJECTS) == [[]]
    await migrate.upgrade(url)
    [after] = await read(url, OBJECTS)
    assert sorted(before) == sorted(after) != []


async def test_ten_upgrades_at_once_on_an_empty_database_all_succeed(empty_database: MakeDatabase) -> None:
    url = await empty_database()
    program = f"import asyncio; from backend.adapters.db import migrate; asyncio.run(migrate.upgrade({url!r}))"
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", program, stderr=asyncio.subprocess.PIPE)
        for _ in range(10)
    ]
    errors = [(await process.communicate())[1].decode() for process in processes]
    assert [(process.returncode, error) for process, error in zip(processes, errors, strict=True)] == [(0, "")] * 10
    assert await read(url, "SELECT version_num FROM alembic_version") == [[(migrate.head(),)]]


async def test_no_revision_looks_through_old_rows_while_it_keeps_others_from_them(empty_database: MakeDatabase) -> None:
    # Adding a check locks its table until the revision commits; so rows are held against it by a later revision.
    url = await empty_database()
    known: dict[str, set[str]] = {}
    looked_through: list[tuple[str, str, str]] = []
    revisions = [
        script.revision for script in ScriptDirectory.from_config(migrate.configuration()).walk_revisions("base")
    ]
    assert len(revisions) > 1
    for revision in reversed(revisions):
        await migrate.upgrade(url, to=revision)
        [checks] = await read(url, CHECKS)
        looked_through += [
            (revision, table, name) for table, name, valid in checks if valid and name not in known.get(table, {name})
        ]
        [tables] = await read(url, RELATIONS)
        # A check that was added without a look may be looked through from the next revision on.
        known = {table: {name for of, name, _ in checks if of == table} for table, *_ in tables}
    assert looked_through == []
    [checks] = await read(url, CHECKS)
    assert all(valid for *_, valid in checks)


async def test_the_database_says_at_which_revision_it_stands(empty_database: MakeDatabase) -> None:
    url = await empty_database()
    engine = connect(url)
    try:
        assert await migrate.revision(engine) is None
        await migrate.upgrade(url)
        assert await migrate.revision(engine) == migrate.head()
    finally:
        await engine.dispose()


async def test_a_limit_of_this_month_in_tokens_stands_after_the_upgrade(empty_database: MakeDatabase) -> None:
    url = await empty_database()
    await migrate.upgrade(url, to="0009")
    connection = await asyncpg.connect(url)
    await connection.execute(
        "INSERT INTO budgets (scope, owner_id, name, limit_tokens) SELECT 'tenant_month', t.id, m.name, m.most"
        " FROM tenants t, (VALUES ('2001-01', 5), (to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM'), 7))"
        " AS m(name, most)"
    )
    await connection.close()
    await migrate.upgrade(url)
    assert await read(url, "SELECT monthly_budget_tokens FROM tenants") == [[(7,)]]


async def test_there_is_one_tenant_from_the_start(database_url: str) -> None:
    assert await read(database_url, "SELECT id::text, name FROM tenants") == [
        [("00000000-0000-7000-8000-000000000001", "default")]
    ]
