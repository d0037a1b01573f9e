"""Prompts are files: rendered strictly, hashed, with everything that others wrote fenced as data.

A prompt file holds the system text and, after a line `--- user ---`, the user text. The files are package resources
and are read once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from backend.domain.model import Message
from backend.domain.ports import StepFailed

SEPARATOR = "--- user ---"


@dataclass(frozen=True, slots=True)
class Opening:
    """The first messages of a conversation and the hash of the files that made them."""

    messages: tuple[Message, ...]
    prompt_hash: str


def fence(text: str, label: str) -> str:
    """Wrap text that others wrote so that a model can tell where it ends.

    The fence carries a hash of the text, so the same text gives the same fence (a prompt must be the same again
    after a crash), and no text can contain the line that closes its own.
    """
    mark = hashlib.sha256(f"{label}\0{text}".encode("utf-8", "surrogatepass")).hexdigest()[:20]
    return f"<<data {label} {mark}\n{text.rstrip()}\n{mark} data>>"


def opening(name: str, /, *, pinned: str | None = None, **facts: Any) -> Opening:
    """Render the prompt `name`; every fact that the file uses must be given.

    `pinned` is the `prompt_version` of the run's settings, the beginning of `version`; another version is refused,
    since replies to other words are not what was asked for.
    """
    if pinned is not None and pinned != "latest" and not version(name).startswith(pinned):
        raise StepFailed(
            "prompt_gone",
            f"The settings pin prompt {name} to version {pinned}, but this installation has {version(name)[:12]}; "
            "set roles.*.prompt_version to that, or to latest.",
        )
    system, _, user = _environment().get_template(name).render(**facts).partition(f"\n{SEPARATOR}\n")
    messages = [{"role": "system", "content": system.strip()}]
    if user.strip():
        messages.append({"role": "user", "content": user.strip()})
    return Opening(tuple(messages), prompt_hash(name))


def text(name: str, /, **facts: Any) -> str:
    """Render a prompt file that is a piece of text rather than a conversation."""
    return _environment().get_template(name).render(**facts).strip()


@cache
def prompt_hash(name: str) -> str:
    """Return the sha256 of a prompt file and of the files that every prompt includes."""
    return hashlib.sha256("\0".join((_source(name), _source("rules"))).encode()).hexdigest()


@cache
def version(name: str) -> str:
    """Return the version of all prompts of the role that `name` belongs to, which one setting pins together.

    The hash of its prompt where a role has one; of the hashes of all of them, in the order of their names, where it has
    several (`pm_analyze`, `pm_plan`, `pm_report`).
    """
    role = name.partition("_")[0]
    files = sorted(file.name for file in (resources.files("backend.agents") / "prompts").iterdir())
    stems = [file.removesuffix(".md") for file in files if file.endswith(".md")]
    hashes = [prompt_hash(stem) for stem in stems if stem.partition("_")[0] == role]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\0".join(hashes).encode()).hexdigest()


@cache
def _source(name: str) -> str:
    return (resources.files("backend.agents") / "prompts" / f"{name}.md").read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_source),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 - prompts are plain text; what others wrote is fenced, not escaped
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["fence"] = fence
    return environment
