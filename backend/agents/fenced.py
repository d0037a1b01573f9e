"""Actions as text, for models without tool calling: SEARCH/REPLACE blocks and fenced tool calls.

    path/to/file.py
    <<<<<<< SEARCH
    old lines
    =======
    new lines
    >>>>>>> REPLACE

An empty SEARCH writes the whole file. Every other tool is called by a fence named `tool` that holds one JSON object,
`{"name": …, "arguments": {…}}`.
"""

from __future__ import annotations

import json
import re

from backend.domain.model import ToolCall

_BLOCK = re.compile(
    r"^(?P<path>[^\n`]{1,500})\n(?:```[^\n]*\n)?<{7} SEARCH\n(?P<old>.*?)^={7}\n(?P<new>.*?)^>{7} REPLACE$",
    re.MULTILINE | re.DOTALL,
)
_TOOL = re.compile(r"^```tool[ \t]*\n(?P<call>.*?)\n```[ \t]*$", re.MULTILINE | re.DOTALL)


def parse(content: str) -> tuple[ToolCall, ...]:
    """Return the actions that a reply's text holds, in their order; text between them is left out."""
    content = content.replace("\r\n", "\n")
    edits = [(match.start(), match.end(), _edit(match)) for match in _BLOCK.finditer(content)]
    found = [(at, call) for at, _, call in edits]
    for match in _TOOL.finditer(content):
        if not any(start <= match.start() < end for start, end, _ in edits):
            found.append((match.start(), _call(match)))
    found.sort(key=lambda pair: pair[0])
    return tuple(
        ToolCall(id=f"action_{number}", name=name, arguments=arguments)
        for number, (_, (name, arguments)) in enumerate(found, 1)
    )


def _edit(match: re.Match[str]) -> tuple[str, str]:
    path = match["path"].strip().strip("*:#").strip()
    if not match["old"].strip():
        return "write_file", json.dumps({"path": path, "content": match["new"]})
    # The line break before each marker belongs to the block, not to the text.
    old, new = match["old"].removesuffix("\n"), match["new"].removesuffix("\n")
    return "str_replace", json.dumps({"path": path, "old_str": old, "new_str": new})


def _call(match: re.Match[str]) -> tuple[str, str]:
    try:
        call = json.loads(match["call"])
        return str(call["name"]), json.dumps(call.get("arguments", {}))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "tool", match["call"]
