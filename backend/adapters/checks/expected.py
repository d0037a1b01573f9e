"""Which tests a tree must run, read from its source without running anything, and what of its configuration counts."""

from __future__ import annotations

import ast
import configparser
import os
import tomllib
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

_NOT_ENTERED = ("*.egg", ".*", "_darcs", "build", "CVS", "dist", "node_modules", "venv", "{arch}", "__pycache__")
_KEPT_OPTIONS = ("pythonpath", "markers")


def test_files(root: Path) -> list[str]:
    """Return the Python test files of a tree, sorted."""
    found: list[str] = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not any(fnmatch(name, pattern) for pattern in _NOT_ENTERED))
        for name in names:
            if is_test_file(name):
                found.append(str(PurePosixPath(os.path.relpath(folder, root)) / name))
    return sorted(found)


def is_test_file(path: str) -> bool:
    """Whether pytest takes a file for tests by its name."""
    name = PurePosixPath(path).name
    return fnmatch(name, "test_*.py") or fnmatch(name, "*_test.py")


def declared(root: Path, files: Iterable[str]) -> list[str]:
    """Return the ids of the tests that the files declare at the top and in classes, parameters left out."""
    return [found for path in files for found in _declared_in(path, (root / path).read_bytes())]


def _declared_in(path: str, body: bytes) -> list[str]:
    try:
        tree = ast.parse(body)
    except (SyntaxError, ValueError, RecursionError):
        return [path]
    found: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _is_test(node):
            found.append(f"{path}::{node.name}")
        elif isinstance(node, ast.ClassDef) and _holds_tests(node):
            methods = [n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
            found += [f"{path}::{node.name}::{method.name}" for method in methods if _is_test(method)]
    return list(dict.fromkeys(found))


def _is_test(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    fixture = any("fixture" in ast.unparse(decorator) for decorator in node.decorator_list)
    return node.name.startswith("test") and not fixture


def _holds_tests(node: ast.ClassDef) -> bool:
    if any(ast.unparse(parent).endswith("TestCase") for parent in node.bases):
        return True
    made = any(isinstance(n, ast.FunctionDef) and n.name in {"__init__", "__new__"} for n in node.body)
    return node.name.startswith("Test") and not made


def options(root: Path) -> dict[str, list[str]]:
    """Return the two settings of the project that the gate takes over: import paths inside the tree, and marker names.

    Everything else (`addopts`, `testpaths`, `python_files`, …) could hide tests and is ignored.
    """
    raw = _raw_options(root)
    paths = [path for path in _words(raw.get("pythonpath")) if _is_inside(root, path)]
    if (root / "src").is_dir() and "src" not in paths:
        paths.append("src")
    lines = raw.get("markers", [])
    markers = lines.splitlines() if isinstance(lines, str) else [str(line) for line in lines]
    return {"pythonpath": paths, "markers": [line.strip() for line in markers if line.strip()]}


def _raw_options(root: Path) -> dict[str, Any]:
    for name, section in (("pytest.ini", "pytest"), ("tox.ini", "pytest"), ("setup.cfg", "tool:pytest")):
        parser = configparser.RawConfigParser(strict=False)
        try:
            parser.read_string((root / name).read_text("utf-8"))
        except (OSError, UnicodeDecodeError, configparser.Error):
            continue
        if parser.has_section(section):
            return dict(parser.items(section))
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))
        found = project["tool"]["pytest"]["ini_options"]
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError):
        return {}
    return {key: found[key] for key in _KEPT_OPTIONS if key in found} if isinstance(found, dict) else {}


def _words(value: Any) -> list[str]:
    return value.split() if isinstance(value, str) else [str(word) for word in value or []]


def _is_inside(root: Path, path: str) -> bool:
    return (root / path).resolve().is_relative_to(root.resolve())
