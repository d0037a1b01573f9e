"""The seven roles and what each may touch."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """A seat in the company; the value is stored in the database."""

    PM = "pm"
    DEVELOPER = "developer"
    LEAD = "lead"
    QA = "qa"
    SECURITY = "security"
    DOCS = "docs"
    DEVOPS = "devops"


_READ = frozenset({"list_files", "search", "read_file"})
_EDIT = _READ | {"str_replace", "write_file", "delete_file"}
_END = frozenset({"submit"})

TOOLS: dict[Role, frozenset[str]] = {
    Role.PM: frozenset(),
    Role.DEVELOPER: _EDIT | {"run", "run_tests", "ask_human"} | _END,
    Role.LEAD: _READ,
    Role.QA: _EDIT | {"run", "run_tests"} | _END,
    Role.SECURITY: _READ,
    Role.DOCS: _EDIT | _END,
    Role.DEVOPS: _EDIT | _END,
}
"""The tools each role is offered; a call to any other is refused."""
