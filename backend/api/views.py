"""The shapes of answers for documentation, made from the tables themselves so that they cannot drift.

The JSON is made by Postgres (`operations/pages.py`); a test validates it against these models.
"""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Generic, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, create_model
from sqlalchemy import Numeric
from sqlalchemy.types import TypeEngine

from backend.adapters.db.columns import CleanText
from backend.operations.pages import View

Money = Annotated[str, StringConstraints(pattern=r"^-?\d+\.\d{6}$"), Field(examples=["0.013250"])]
Item = TypeVar("Item")

_ID = "0199a1b2-0000-7000-8000-000000000001"
_EXAMPLES: dict[Any, Any] = {
    UUID: _ID,
    datetime.datetime: "2026-11-21T08:00:00.000000Z",
    Money: "0.013250",
    int: 1,
    bool: False,
    str: "…",
}


class PageOf(BaseModel, Generic[Item]):
    """A page of a list."""

    items: list[Item]
    next_cursor: str | None = Field(description="Where the next page begins; null on the last")
    total: int | None = Field(default=None, description="All rows that fit, where `count=true` asked for it")


def view_model(name: str, view: View, **kinds: Any) -> type[BaseModel]:
    """A model of what `view` shows; `kinds` narrows columns, such as a status to its words, or types computed ones."""
    fields: dict[str, Any] = {}
    example: dict[str, Any] = {}
    for column_name, column in view.columns.items():
        kind = kinds.get(column_name) or _kind(column.type)
        words = [str(word) for word in kind] if hasattr(kind, "__members__") else None
        example[column_name] = words[0] if words else _EXAMPLES.get(kind)
        nullable = getattr(column, "nullable", False)
        about = Field(description=getattr(column, "comment", None) or column_name.replace("_", " "))
        fields[column_name] = (kind | None if nullable else kind, about)
    config = ConfigDict(extra="forbid", json_schema_extra={"example": example})
    made: type[BaseModel] = create_model(name, __config__=config, __doc__=f"A {view.what}.", **fields)
    return made


def _kind(column_type: TypeEngine[Any]) -> Any:
    if isinstance(column_type, CleanText):
        return str
    if isinstance(column_type, Numeric):
        return Money
    return column_type.python_type if column_type.python_type is not object else Any
