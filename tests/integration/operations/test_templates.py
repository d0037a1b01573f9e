"""Templates in the database: versions never change, those that ship are loaded once, people make their own."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db.engine import Sessions
from backend.domain.template import Template
from backend.errors import Conflict, Invalid, NotFound
from backend.operations import templates
from backend.operations.pages import PageRequest

SHIPPING = len(templates.built_ins())
SHIPPED = Template(slug="shipped", version=1, title="Shipped", config={"parallelism": 3})


async def test_what_ships_is_loaded_once_however_often_it_is_asked_for(session: AsyncSession) -> None:
    assert await templates.load_built_ins(session) == SHIPPING
    assert await templates.load_built_ins(session) == 0
    standard = await templates.get(session, "standard")
    assert (standard.version, standard.graph, standard.built_in) == (1, "software_company", True)


async def test_ten_processes_that_start_at_once_load_what_ships_once(sessions: Sessions) -> None:
    async def start() -> int:
        async with sessions.begin() as session:
            return await templates.load_built_ins(session)

    assert sum(await asyncio.gather(*(start() for _ in range(10)))) == SHIPPING


async def test_a_changed_file_without_a_new_version_is_refused(session: AsyncSession) -> None:
    await templates.load_built_ins(session, [SHIPPED])
    changed = SHIPPED.model_copy(update={"config": {"parallelism": 4}})
    with pytest.raises(Conflict, match="save the change as templates/shipped/2.yaml"):
        await templates.load_built_ins(session, [changed])
    assert await templates.load_built_ins(session, [SHIPPED, changed.model_copy(update={"version": 2})]) == 1
    assert (await templates.get(session, "shipped")).config_patch == {"parallelism": 4}
    assert (await templates.get(session, "shipped", 1)).config_patch == {"parallelism": 3}


async def test_people_make_new_templates_and_next_versions(session: AsyncSession) -> None:
    first = await templates.create(session, slug="mine", title="Mine", config_patch={"parallelism": 2})
    second = await templates.create(session, slug="mine", title="Mine", config_patch={"parallelism": 3})
    assert (first.version, second.version) == (1, 2)
    assert (await templates.get(session, "mine")).version == 2


async def test_the_same_content_again_is_the_same_version(session: AsyncSession) -> None:
    first = await templates.create(session, slug="mine", title="Mine", config_patch={"budget": {"usd": "1.50"}})
    again = await templates.create(session, slug="mine", title="Mine", config_patch={"budget": {"usd": "1.50"}})
    assert again.id == first.id


async def test_settings_that_do_not_fit_are_refused_with_pointers(session: AsyncSession) -> None:
    with pytest.raises(Invalid) as caught:
        await templates.create(session, slug="mine", title="Mine", config_patch={"budget": {"usd": 0}})
    assert [fault.pointer for fault in caught.value.faults] == ["/config/budget/usd"]


async def test_a_slug_that_ships_cannot_be_taken_over(session: AsyncSession) -> None:
    await templates.load_built_ins(session, [SHIPPED])
    with pytest.raises(Conflict, match="take another slug"):
        await templates.create(session, slug="shipped", title="Mine now")


async def test_versions_made_at_once_are_numbered_without_gaps(sessions: Sessions) -> None:
    async def make(number: int) -> int:
        async with sessions.begin() as session:
            row = await templates.create(session, slug="race", title=f"Race {number}")
            return row.version

    assert sorted(await asyncio.gather(*(make(number) for number in range(10)))) == list(range(1, 11))


async def test_an_archived_version_is_offered_no_longer_and_stays_readable(session: AsyncSession) -> None:
    await templates.create(session, slug="mine", title="One")
    await templates.create(session, slug="mine", title="Two")
    put_away = await templates.archive(session, "mine", 2)
    assert (await templates.archive(session, "mine", 2)).archived_at == put_away.archived_at
    assert (await templates.get(session, "mine")).version == 1
    assert (await templates.get(session, "mine", 2)).title == "Two"
    await templates.archive(session, "mine", 1)
    with pytest.raises(NotFound, match="no template mine"):
        await templates.get(session, "mine")


async def test_a_version_cannot_be_changed_in_the_database_either(session: AsyncSession) -> None:
    await templates.create(session, slug="mine", title="One")
    with pytest.raises(DBAPIError):
        async with session.begin_nested():
            await session.execute(text("UPDATE project_templates SET title = 'Two' WHERE slug = 'mine'"))


async def test_lists_show_what_is_offered(session: AsyncSession) -> None:
    await templates.load_built_ins(session)
    await templates.create(session, slug="mine", title="Mine")
    await templates.archive(session, "mine", 1)
    shown = await templates.page(session, PageRequest(count=True))
    assert shown.total == SHIPPING
    assert (await templates.page(session, PageRequest(count=True), archived=True)).total == SHIPPING + 1
    assert (await templates.page(session, PageRequest(count=True), slug="lean")).total == 1


async def test_the_schema_of_a_template_shows_its_values(session: AsyncSession) -> None:
    await templates.load_built_ins(session)
    schema = await templates.schema(session, "lean")
    assert schema["properties"]["budget"]
    assert schema["examples"][0]["budget"]["usd"] == "0.50"
    with pytest.raises(NotFound):
        await templates.schema(session, "none")
