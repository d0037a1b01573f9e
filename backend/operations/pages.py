"""How rows are shown: JSON made by Postgres, one row or a page of them, newest first, by keyset.

A page deep in a list costs what the first one costs: the cursor names the last row that was seen, and the index is
entered there. Lists are what is asked most: the statement of each kind of list is written once and goes to the driver
as it is, since the mapper would take longer over it than the database takes to answer.

Money is a string with six decimals, instants are RFC 3339 in UTC with `Z`.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

import asyncpg
from sqlalchemy import (
    CTE,
    Column,
    DateTime,
    Integer,
    Numeric,
    Select,
    Subquery,
    Text,
    Uuid,
    bindparam,
    cast,
    func,
    literal_column,
    null,
    select,
    tuple_,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, ColumnElement

from backend.adapters.db.direct import Direct, driver_of
from backend.adapters.db.tables import Artifact, DeadLetter, Finding, Question, Table, TaskComment
from backend.errors import Fault, Invalid, NotFound

Row = TypeVar("Row", Artifact, DeadLetter, Finding, Question, TaskComment)

# Constants stand in the text: as arguments they would be most of what a statement is sent with.
_INSTANT: ColumnElement[str] = literal_column("""'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'""")
MAX_LIMIT = 200
MAX_SKIP = 1_000_000


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Which page is wanted; `skip` and `cursor` exclude each other, `count` asks for the total."""

    limit: int = 50
    cursor: str | None = None
    skip: int = 0
    count: bool = False

    def __post_init__(self) -> None:
        if self.cursor is not None and self.skip:
            raise Invalid(
                "Give either `skip` or `cursor`, not both.",
                faults=[Fault("/query/skip", "leave it out beside a cursor")],
            )


@dataclass(frozen=True, slots=True)
class Page:
    """A page as JSON texts, ready to be sent."""

    items: tuple[str, ...]
    next_cursor: str | None
    total: int | None = None

    def json(self) -> bytes:
        """The body of the answer."""
        tail = "" if self.total is None else f',"total":{self.total}'
        return f'{{"items":[{",".join(self.items)}],"next_cursor":{json.dumps(self.next_cursor)}{tail}}}'.encode()


def cursor_of(instant: datetime, row_id: UUID) -> str:
    """Name a row's place in the order (created_at, id)."""
    return base64.urlsafe_b64encode(f"{instant.isoformat()} {row_id}".encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> tuple[datetime, UUID]:
    """Take a cursor apart; raise `Invalid` for one that we did not make."""
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
        instant, row_id = text.split(" ")
        parsed = datetime.fromisoformat(instant)
        if parsed.tzinfo is None:
            raise ValueError("no time zone")
        return parsed.astimezone(UTC), UUID(row_id)
    except (ValueError, OverflowError, binascii.Error) as error:
        raise Invalid(
            "This cursor was not made by a list of this API; use `next_cursor` of the page before.",
            faults=[Fault("/query/cursor", "the `next_cursor` of the page before, unchanged")],
        ) from error


def shown(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """The column as it stands in JSON: money as text, instants with `Z`, all else as it is."""
    if isinstance(column.type, Numeric):
        return cast(column, Text)
    if isinstance(column.type, DateTime):
        return func.to_char(func.timezone(literal_column("'UTC'"), column), _INSTANT)
    return column


def fitting(table: type[Row], tenant_id: UUID, **wanted: object) -> list[ColumnElement[bool]]:
    """The conditions that a row is the tenant's and its columns have the wanted values; None wants nothing."""
    values = {"tenant_id": tenant_id, **wanted}
    return [getattr(table, name) == value for name, value in values.items() if value is not None]


async def owned(session: AsyncSession, table: type[Row], row_id: UUID, tenant_id: UUID, what: str) -> Row:
    """The tenant's row of this id; raises `NotFound` where there is none or somebody else owns it."""
    found = await session.scalar(select(table).where(*fitting(table, tenant_id, id=row_id)))
    if found is None:
        raise NotFound(f"There is no {what} {row_id}.")
    return found


@dataclass(frozen=True, slots=True)
class _Shape:
    """What two lists have in common that one statement answers: columns and how they are compared, and the cursor."""

    conditions: tuple[tuple[str, Any], ...]
    deep: bool


def _taken_apart(condition: ColumnElement[bool]) -> tuple[tuple[str, Any], Any] | None:
    """The column and operator of a plain comparison, and the value; None for anything else."""
    if not isinstance(condition, BinaryExpression):
        return None
    column, value = condition.left, condition.right
    if not isinstance(column, Column) or not isinstance(value, BindParameter):
        return None
    return (column.name, condition.operator), value.value


def _as_json(rows: Select[Any]) -> Select[str]:
    return select(cast(func.row_to_json(literal_column("x")), Text)).select_from(rows.subquery("x"))


def _cursor_after(item: str) -> str:
    row = json.loads(item)
    return cursor_of(datetime.fromisoformat(row["created_at"]), UUID(row["id"]))


class View:
    """What is shown of a table's rows: all columns but those left out, and more that are computed."""

    def __init__(
        self,
        table: type[Table],
        *,
        leave_out: frozenset[str] = frozenset(),
        more: Mapping[str, ColumnElement[Any]] | None = None,
    ) -> None:
        self.table = table
        self.what = table.__tablename__.removeprefix("project_").removesuffix("s").replace("_", " ")
        columns = {column.name: column for column in table.__table__.columns if column.name not in leave_out}
        self.columns: dict[str, ColumnElement[Any]] = {**columns, **(more or {})}
        self.shown = [shown(column).label(name) for name, column in self.columns.items()]
        self._lists: dict[_Shape, Direct] = {}
        self._created: ColumnElement[Any] = table.__table__.c.get("created_at", null())
        self._id: ColumnElement[Any] = table.__table__.c.get("id", null())

    def json(self, *where: ColumnElement[bool]) -> Select[str]:
        """The query for rows as JSON."""
        return _as_json(select(*self.shown).where(*where))

    async def one(self, session: AsyncSession, *where: ColumnElement[bool]) -> str:
        """The one row as JSON; raises `NotFound`."""
        found = await session.scalar(self.json(*where))
        if found is None:
            raise NotFound(f"There is no such {self.what}.")
        return found

    def made(self, rows: CTE) -> Subquery:
        """The rows that the same statement makes; what is computed from what they will own is null as yet."""
        columns = ((name, rows.c.get(name)) for name in self.columns)
        shows = (null() if column is None else shown(column) for _, column in columns)
        return select(*(column.label(name) for name, column in zip(self.columns, shows, strict=True))).subquery("x")

    async def all(
        self, session: AsyncSession, *where: ColumnElement[bool], order_by: Sequence[Any], limit: int
    ) -> list[str]:
        """Up to `limit` rows as JSON in the order asked for."""
        return list(await session.scalars(_as_json(select(*self.shown).where(*where).order_by(*order_by).limit(limit))))

    async def page(self, session: AsyncSession, wanted: PageRequest, *where: ColumnElement[bool]) -> Page:
        """One page of the rows that fit, newest first."""
        total = await self._count(session, *where) if wanted.count else None
        values: dict[str, Any] = {"limit": wanted.limit + 1, "skip": wanted.skip}
        if wanted.cursor is not None:
            values["instant"], values["id"] = read_cursor(wanted.cursor)
        rows = await self._directly(session, where, values)
        if rows is None:
            rows = list(await session.scalars(self._query(where, deep="instant" in values), values))
        items = tuple(rows[: wanted.limit])
        more = len(rows) > wanted.limit
        return Page(items, _cursor_after(items[-1]) if more else None, total)

    async def _directly(
        self, session: AsyncSession, where: Sequence[ColumnElement[bool]], values: Mapping[str, Any]
    ) -> list[str] | None:
        """The rows as the driver brings them; None where the mapper is to ask, or to say what is wrong."""
        taken = [part for part in map(_taken_apart, where) if part is not None]
        if len(taken) < len(where):
            return None
        listed = self._list(_Shape(tuple(kind for kind, _ in taken), "instant" in values))
        given = {**values, **{f"w{n}": value for n, (_, value) in enumerate(taken)}}
        try:
            return [row[0] for row in await listed.rows(await driver_of(session), given)]
        except (asyncpg.PostgresError, asyncpg.InterfaceError):
            return None

    def _list(self, shape: _Shape) -> Direct:
        """The statement of lists of a shape."""
        found = self._lists.get(shape)
        if found is None:
            conditions = [
                compare(self.table.__table__.c[name], bindparam(f"w{n}", type_=self.table.__table__.c[name].type))
                for n, (name, compare) in enumerate(shape.conditions)
            ]
            found = self._lists[shape] = Direct(self._query(conditions, deep=shape.deep))
        return found

    def _query(self, where: Sequence[ColumnElement[bool]], *, deep: bool) -> Select[str]:
        inner = select(*self.shown).where(*where)
        if deep:
            last = (bindparam("instant", type_=DateTime(timezone=True)), bindparam("id", type_=Uuid()))
            inner = inner.where(tuple_(self._created, self._id) < tuple_(*last))
        inner = inner.order_by(self._created.desc(), self._id.desc())
        return _as_json(inner.limit(bindparam("limit", type_=Integer())).offset(bindparam("skip", type_=Integer())))

    async def _count(self, session: AsyncSession, *where: ColumnElement[bool]) -> int:
        return int(await session.scalar(select(func.count()).select_from(self.table).where(*where)) or 0)
