"""What tables are made of: text and JSON that Postgres can keep, the columns that most tables share, their registry."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, DateTime, ForeignKey, LargeBinary, MetaData, Numeric, Text, TypeDecorator, Uuid
from sqlalchemy import text as sql
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from backend.domain.ids import DEFAULT_TENANT
from backend.errors import Invalid

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def storable(value: str) -> str:
    """Return the text as Postgres can keep it; raise `Invalid` for NUL characters and lone surrogates."""
    if _UNSTORABLE.search(value):
        raise Invalid("The text holds a NUL character or half of a surrogate pair; remove it and send it again.")
    return value


def storable_json(value: Any) -> Any:
    """Check every string of a JSON value as `storable` does."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, dict):
        return {storable(str(key)): storable_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [storable_json(item) for item in value]
    return value


class CleanText(TypeDecorator[str]):
    """Text that Postgres can keep."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Refuse what cannot be stored before it reaches the driver."""
        return None if value is None else storable(value)


class CleanJson(TypeDecorator[Any]):
    """JSONB whose strings Postgres can keep."""

    impl = JSONB
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        """Refuse what cannot be stored before it reaches the driver."""
        return storable_json(value)


class Table(DeclarativeBase):
    """The registry of all tables, with one naming convention for constraints."""

    metadata = MetaData(
        naming_convention={
            "ix": "idx_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {
        str: CleanText,
        datetime: DateTime(timezone=True),
        Decimal: Numeric(14, 6),
        UUID: Uuid,
        bytes: LargeBinary,
        dict[str, Any]: CleanJson,
        list[Any]: CleanJson,
    }


def one_of(column: str, words: Iterable[StrEnum]) -> CheckConstraint:
    """A check that the column holds one of the words; named after the column."""
    listed = ", ".join(f"'{word}'" for word in words)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


def row_id() -> Mapped[UUID]:
    """The primary key of most tables."""
    return mapped_column(primary_key=True, server_default=sql("uuidv7()"), comment="Time-ordered random id")


def tenant(*, index: bool = True) -> Mapped[UUID]:
    """The owner; `index=False` where another index begins with it."""
    return mapped_column(
        ForeignKey("tenants.id"), server_default=sql(f"'{DEFAULT_TENANT}'"), index=index, comment="Owner of the row"
    )


def tenant_of_run() -> Mapped[UUID]:
    """The tenant of a row of a run: the run's, which is checked there, so that each row is spared the check."""
    return mapped_column(server_default=sql(f"'{DEFAULT_TENANT}'"), comment="Owner of the row")


def created() -> Mapped[datetime]:
    """When the row was made, by the database's clock."""
    return mapped_column(server_default=sql("clock_timestamp()"), comment="When the row was made (UTC)")


def updated() -> Mapped[datetime]:
    """When the row last changed, by the database's clock."""
    return mapped_column(
        server_default=sql("clock_timestamp()"),
        onupdate=sql("clock_timestamp()"),
        comment="When the row last changed (UTC)",
    )


def row_version() -> Mapped[int]:
    """Counts changes, for optimistic concurrency."""
    return mapped_column(server_default="1", comment="Counts changes; sent as ETag, expected back in If-Match")
