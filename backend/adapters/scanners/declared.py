"""The dependencies that a project declares, read without running anything."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from backend.domain.secret import masked

_REQUIREMENT = re.compile(r"^\s*([A-Za-z0-9][\w.-]*)\s*(?:\[[^\]]*\])?\s*\(?([^;#@)]*)")


@dataclass(frozen=True, slots=True)
class Dependency:
    """One declared package; `version` is set when it is pinned to exactly one."""

    name: str
    version: str | None
    path: str
    line: int | None


@dataclass(frozen=True, slots=True)
class Declared:
    """All that is declared; `unreadable` says what could not be read, `foreign` what is not Python."""

    python: tuple[Dependency, ...]
    foreign: tuple[str, ...]
    unreadable: tuple[str, ...]


def declared(root: Path, texts: Sequence[str]) -> Declared:
    """Read requirements files, pyproject.toml and package.json anywhere in the tree."""
    python: list[Dependency] = []
    foreign: list[str] = []
    unreadable: list[str] = []
    for path in texts:
        name = PurePosixPath(path).name
        body = (root / path).read_text("utf-8", "replace")
        try:
            if re.fullmatch(r"(?:.*requirements.*|constraints.*)\.(?:txt|in)", name):
                python += _requirements(path, body)
            elif name == "pyproject.toml":
                python += _pyproject(path, body)
            elif name == "package.json":
                foreign += _package(path, json.loads(body))
            elif name in {"setup.py", "Pipfile", "go.mod", "Cargo.toml", "Gemfile", "pom.xml"} and _declares(
                name, body
            ):
                unreadable.append(f"{path} (declare Python dependencies in pyproject.toml or requirements.txt)")
        except (ValueError, KeyError, TypeError, AttributeError) as bad:
            unreadable.append(f"{path} ({bad})")
    return Declared(tuple(python), tuple(foreign), tuple(unreadable))


def _declares(name: str, body: str) -> bool:
    words = {"setup.py": "install_requires", "go.mod": "require", "Cargo.toml": "dependencies", "Pipfile": "packages"}
    return words.get(name, "") in body


def _requirements(path: str, body: str) -> Iterator[Dependency]:
    for number, line in enumerate(body.splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if text.startswith("-"):
            if re.match(r"^(?:-r|-c|--requirement|--constraint|--hash)\b", text):
                continue
            raise ValueError(f"line {number}: {masked(text)[:60]} is not a plain requirement")
        yield _one(text, path, number)


def _one(text: str, path: str, line: int | None) -> Dependency:
    match = _REQUIREMENT.match(text)
    if match is None or "://" in text:
        raise ValueError(f"{masked(text)[:60]!r} cannot be audited: name a package and a version")
    pinned = re.fullmatch(r"={2,3}\s*([\w.!+-]+)", match[2].replace("\\", "").strip().split(" --hash")[0].strip())
    return Dependency(re.sub(r"[-_.]+", "-", match[1]).lower(), pinned[1] if pinned else None, path, line)


def _pyproject(path: str, body: str) -> Iterator[Dependency]:
    data: dict[str, Any] = tomllib.loads(body)
    project = data.get("project", {})
    groups = [project.get("dependencies", []), *project.get("optional-dependencies", {}).values()]
    groups += [
        [item for item in group if isinstance(item, str)] for group in data.get("dependency-groups", {}).values()
    ]
    groups.append(data.get("build-system", {}).get("requires", []))
    lines = body.splitlines()
    for text in (text for group in groups for text in group):
        at = next((number for number, line in enumerate(lines, start=1) if text in line), None)
        yield _one(text, path, at)
    poetry = data.get("tool", {}).get("poetry", {}).get("dependencies", {})
    for name, wanted in poetry.items():
        if name != "python":
            exact = isinstance(wanted, str) and re.fullmatch(r"\d[\w.]*", wanted)
            yield Dependency(re.sub(r"[-_.]+", "-", name).lower(), str(wanted) if exact else None, path, None)


def _package(path: str, data: Any) -> list[str]:
    return [f"{path}: {name}" for key in ("dependencies", "devDependencies") for name in data.get(key, {})]
