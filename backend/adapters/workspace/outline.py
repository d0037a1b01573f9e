"""A map of a repository for prompts: its files with their top-level names, cut to a size."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence

_NAMES = {
    ".js": r"^(?:export )?(?:default )?(?:async )?(?:function\*?|class|const) +(\w+)",
    ".ts": r"^(?:export )?(?:default )?(?:async )?(?:function\*?|class|const|interface|type) +(\w+)",
    ".go": r"^(?:func (?:\([^)]*\) )?|type )(\w+)",
    ".rs": r"^(?:pub )?(?:fn|struct|enum|trait) +(\w+)",
    ".md": r"^#{1,2} +(.{1,80})",
}
SUFFIXES = frozenset({".py", *_NAMES})


def outline(files: Sequence[str], bodies: Mapping[str, str], limit: int) -> str:
    """Return a line a file; names are left out first when it grows too long, then files, and the text says so."""
    full = [_line(path, bodies.get(path)) for path in files]
    for lines in (full, list(files)):
        if sum(len(line) + 1 for line in lines) <= limit:
            return "\n".join(lines)
    kept: list[str] = []
    room = limit - 60
    for path in files:
        if room < len(path) + 1:
            break
        kept.append(path)
        room -= len(path) + 1
    return "\n".join([*kept, f"… and {len(files) - len(kept)} more files (use list_files)"])


def _line(path: str, body: str | None) -> str:
    names = _names(path, body) if body is not None else []
    return f"{path}: {', '.join(names[:40])}" if names else path


def _names(path: str, body: str) -> list[str]:
    if path.endswith(".py"):
        return _python(body)
    suffix = path[path.rfind(".") :] if "." in path else ""
    pattern = _NAMES.get(suffix)
    return re.findall(pattern, body, re.MULTILINE) if pattern else []


def _python(body: str) -> list[str]:
    try:
        tree = ast.parse(body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ["(does not parse)"]
    names: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.append(f"{node.name}({', '.join(a.arg for a in node.args.args)})")
        elif isinstance(node, ast.ClassDef):
            methods = [n.name for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
            public = [name for name in methods if not name.startswith("_")]
            names.append(f"class {node.name}" + (f"[{', '.join(public)}]" if public else ""))
        elif isinstance(node, ast.Assign):
            names += [t.id for t in node.targets if isinstance(t, ast.Name) and t.id.isupper()]
    return names
