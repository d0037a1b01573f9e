"""The tools that roles are offered: the same names and arguments on every provider, as OpenAI function schemas."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_PATH = {"type": "string", "minLength": 1, "maxLength": 500, "description": "Path from the top of the repository."}


def _tool(name: str, description: str, required: tuple[str, ...] = (), **properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "description": description,
        "parameters": {
            "type": "object",
            "properties": properties,
            "required": list(required),
            "additionalProperties": False,
        },
    }


_ALL = (
    _tool(
        "list_files",
        "List the names of files and folders.",
        path=_PATH | {"default": "."},
        depth={"type": "integer", "minimum": 1, "maximum": 10, "default": 2},
    ),
    _tool(
        "search",
        "Search file contents by regular expression; answers with at most 50 lines as file:line: text.",
        ("regex",),
        regex={"type": "string", "minLength": 1, "maxLength": 1000},
        glob={"type": "string", "maxLength": 200, "description": "Only files that match, such as src/**/*.py."},
    ),
    _tool(
        "read_file",
        "Read at most 400 numbered lines of a file.",
        ("path",),
        path=_PATH,
        start={"type": "integer", "minimum": 1, "default": 1},
        end={"type": "integer", "minimum": 1, "description": "Last line; at most start + 399."},
    ),
    _tool(
        "str_replace",
        "Replace old_str, which must stand in the file exactly once, by new_str. Quote enough lines to be unique.",
        ("path", "old_str", "new_str"),
        path=_PATH,
        old_str={"type": "string", "minLength": 1, "maxLength": 100_000},
        new_str={"type": "string", "maxLength": 100_000},
    ),
    _tool(
        "write_file",
        "Write a new file, a short file, or a file in which str_replace failed twice.",
        ("path", "content"),
        path=_PATH,
        content={"type": "string", "maxLength": 400_000},
    ),
    _tool("delete_file", "Delete a file.", ("path",), path=_PATH),
    _tool(
        "run",
        "Run a shell command in the sandbox, at the top of the repository, without network.",
        ("command",),
        command={"type": "string", "minLength": 1, "maxLength": 4000},
        seconds={"type": "integer", "minimum": 1, "maximum": 600, "default": 60},
    ),
    _tool(
        "run_tests",
        "Run the tests with the gate's own runner; all of them, or only those with the ids given.",
        ids={"type": "array", "items": {"type": "string", "maxLength": 500}, "maxItems": 200, "default": []},
    ),
    _tool(
        "ask_human",
        "Ask a person what only a person can decide. The work stops until the answer is there; once a task visit.",
        ("question",),
        question={"type": "string", "minLength": 10, "maxLength": 2000},
        options={"type": "array", "items": {"type": "string", "maxLength": 200}, "maxItems": 8, "default": []},
    ),
    _tool(
        "submit",
        "Say that the work is done. The first call shows the diff and a checklist, the second ends the work.",
        ("summary",),
        summary={"type": "string", "minLength": 1, "maxLength": 4000},
    ),
)

TOOL_SCHEMAS: dict[str, dict[str, Any]] = {tool["name"]: tool for tool in _ALL}
"""Name to function schema (`name`, `description`, `parameters`); arguments that are not named here are refused."""

EDITS = frozenset({"str_replace", "write_file", "delete_file"})
"""The tools that change files."""


def offer(names: Iterable[str]) -> tuple[dict[str, Any], ...]:
    """Return the tools as a request carries them, in one fixed order."""
    wanted = frozenset(names)
    return tuple({"type": "function", "function": tool} for name, tool in TOOL_SCHEMAS.items() if name in wanted)
