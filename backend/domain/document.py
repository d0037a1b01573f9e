"""Whether documents fit the code: the paths, commands, modules and names that they mention must exist."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_FENCE = re.compile(r"^```([\w-]*)[^\n]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`\n]{1,200})`(?!`)")
_PATH = re.compile(r"^(?:\./)?[\w.@-]+(?:/[\w.@-]+)*/?$")
_CALL = re.compile(r"^([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\(.*\)$")
_DOTTED = re.compile(r"^[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+$")
_SUFFIX = re.compile(r"\.(py|toml|md|rst|txt|ya?ml|json|cfg|ini|sh|js|ts|go|rs|sql|html|css|csv|lock|env)$")
_SHELLS = frozenset({"sh", "bash", "shell", "console"})
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")
_FOREIGN = frozenset(
    ("pip", "pipx", "python", "python3", "pytest", "docker", "git", "uv", "make", "npm", "npx", "node", "go", "cargo")
    + ("cd", "curl", "wget", "cat", "echo", "export", "source", ".", "cp", "mv", "rm", "mkdir", "ls", "printf", "head")
    + (
        "tail",
        "grep",
        "sort",
        "chmod",
        "env",
        "read",
        "sudo",
        "apt-get",
        "brew",
        "touch",
        "tee",
        "time",
        "watch",
        "ssh",
        "set",
    )
)
"""Commands of the system, whose options are not the project's."""


@dataclass(frozen=True, slots=True)
class Repository:
    """What documents are compared with: every path, and the text of everything that is not a document."""

    files: Sequence[str]
    code: Mapping[str, str]

    def has_path(self, path: str) -> bool:
        """Whether a file or folder of that name is there, from the top or, for a bare file name, anywhere."""
        wanted = path.removeprefix("./").rstrip("/")
        if any(name == wanted or name.startswith(wanted + "/") for name in self.files):
            return True
        return "/" not in wanted and any(name.endswith("/" + wanted) for name in self.files)

    def has_module(self, dotted: str) -> bool:
        """Whether a Python module or package of that name is there."""
        path = dotted.replace(".", "/")
        ends = (f"{path}.py", f"{path}/__init__.py", f"{path}/__main__.py")
        return any(name.endswith("/" + end) or name == end for name in self.files for end in ends)

    def has_word(self, word: str) -> bool:
        """Whether the code says the word."""
        pattern = re.compile(rf"(?<![\w-]){re.escape(word)}(?![\w-])")
        return any(pattern.search(text) for text in self.code.values())


def misfits(documents: Mapping[str, str], repository: Repository) -> list[str]:
    """Return a sentence for each thing that a document mentions and the repository does not have, in order."""
    found: dict[str, None] = {}
    for path in sorted(documents):
        text = documents[path]
        for language, body in _FENCE.findall(text):
            if language in _SHELLS:
                found.update((f"{path}: {why}", None) for why in _commands(body, repository))
        for span in _SPAN.findall(_FENCE.sub("", text)):
            why = _span(span.strip(), repository)
            if why:
                found[f"{path}: {why}"] = None
    return list(found)


def _span(span: str, repository: Repository) -> str | None:
    if _PATH.match(span) and (_SUFFIX.search(span) or span.endswith("/")):
        return None if repository.has_path(span) else f"the path `{span}` does not exist."
    name = match.group(1) if (match := _CALL.match(span)) else span if _DOTTED.match(span) else None
    if name is None or repository.has_module(name):
        return None
    last = name.rpartition(".")[2]
    return None if repository.has_word(last) else f"the name `{name}` is not in the code."


def _commands(body: str, repository: Repository) -> Iterable[str]:
    for line in body.splitlines():
        words = line.strip().removeprefix("$ ").split()
        while words and re.match(r"^[A-Z_][A-Z0-9_]*=", words[0]):
            words = words[1:]
        if not words or not re.match(r"^[A-Za-z.][\w./-]*$", words[0]):
            continue  # a comment, or more shell than this reads
        yield from _command(words, repository)


def _command(words: Sequence[str], repository: Repository) -> Iterable[str]:
    module = _run_module(words)
    if module is not None and module not in _STANDARD and not repository.has_module(module):
        yield f"`python -m {module}` is not there."
    if words[0] == "make" and len(words) > 1 and not _has_target(words[1], repository):
        yield f"`make {words[1]}` is not there."
    if module is not None and repository.has_module(module):
        ours = words
    else:
        ours = words if words[0] not in _FOREIGN else []
        if ours and not (repository.has_word(words[0]) or repository.has_path(words[0])):
            yield f"the command `{words[0]}` is not in the code."
            return
    for option in _OPTION.findall(" ".join(ours)):
        if option not in ("--help", "--version") and not repository.has_word(option):
            yield f"the option `{option}` is not in the code."


_STANDARD = frozenset(
    {"venv", "pip", "pytest", "unittest", "build", "http.server", "json.tool", "coverage", "mypy", "ruff"}
)


def _run_module(words: Sequence[str]) -> str | None:
    if words[0] in ("python", "python3") and len(words) > 2 and words[1] == "-m":
        return words[2]
    return None


def _has_target(target: str, repository: Repository) -> bool:
    makefile = repository.code.get("Makefile", "")
    return re.search(rf"(?m)^{re.escape(target)}\s*:", makefile) is not None
