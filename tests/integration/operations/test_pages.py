"""Lists that go to the driver as they are, beside the same lists by the mapper."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.elements import ColumnElement

from backend.adapters.db.tables import Project, ProjectRun
from backend.domain.ids import DEFAULT_TENANT
from backend.domain.run import RunStatus
from backend.errors import Invalid
from backend.operations import projects, runs
from backend.operations.pages import PageRequest, View, read_cursor
from tests.conftest import MakeRun

OURS = ProjectRun.tenant_id == DEFAULT_TENANT
CONDITIONS: list[list[ColumnElement[bool]]] = [
    [OURS],
    [OURS, ProjectRun.status == RunStatus.QUEUED],
    [OURS, ProjectRun.created_at >= datetime(2020, 1, 1, tzinfo=UTC), ProjectRun.number == 1],
    [OURS, ProjectRun.created_at >= datetime(2120, 1, 1, tzinfo=UTC)],
]


async def by_mapper(session: AsyncSession, view: View, wanted: PageRequest, where: list[ColumnElement[bool]]) -> Any:
    values: dict[str, Any] = {"limit": wanted.limit, "skip": wanted.skip}
    if wanted.cursor is not None:
        values["instant"], values["id"] = read_cursor(wanted.cursor)
    return tuple(await session.scalars(view._query(where, deep=wanted.cursor is not None), values))  # noqa: SLF001 - the other way of the same


@pytest.mark.parametrize("where", CONDITIONS)
async def test_a_list_is_the_same_both_ways(
    session: AsyncSession, make_run: MakeRun, where: list[ColumnElement[bool]]
) -> None:
    for number in range(5):
        await make_run(session, status="QUEUED" if number % 2 else "RUNNING")
    await session.flush()
    first = await runs.LISTED.page(session, PageRequest(limit=2), *where)
    assert first.items == await by_mapper(session, runs.LISTED, PageRequest(limit=2), where)
    for wanted in (PageRequest(limit=3, cursor=first.next_cursor), PageRequest(limit=3, skip=1)):
        page = await runs.LISTED.page(session, wanted, *where)
        assert page.items == await by_mapper(session, runs.LISTED, wanted, where)
    directly = await runs.LISTED._directly(session, where, {"limit": 2, "skip": 0})  # noqa: SLF001 - else both are the mapper's
    assert directly == list(first.items), "the list did not go to the driver as it is"


async def test_what_is_no_plain_comparison_is_asked_by_the_mapper_and_refusals_are_the_same(
    session: AsyncSession, make_project: Any
) -> None:
    found = await make_project(session, name="A needle in a name")
    await session.flush()
    page = await projects.page(session, PageRequest(), text="needle")
    assert [str(found.id) in item for item in page.items] == [True]
    with pytest.raises(Invalid):
        await projects.LISTED.page(session, PageRequest(cursor="nonsense"), Project.tenant_id == DEFAULT_TENANT)
