"""Prompts are files: rendered strictly, hashed, with everything that others wrote fenced as data.

A prompt file holds the system text and, after a line `--- user ---`, the user text. The files of this installation are
package resources and are read once; a run renders those that it is pinned to, whatever is installed by then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import DictLoader, StrictUndefined, TemplateError, TemplateNotFound
from jinja2.sandbox import ImmutableSandboxedEnvironment

from backend.domain.config import RunConfig
from backend.domain.model import Opening
from backend.domain.ports import StepFailed
from backend.domain.role import Role

SEPARATOR = "--- user ---"
RULES = "rules"
"""The file that every prompt of a role includes."""
LATEST = "latest"


def fence(text: str, label: str) -> str:
    """Wrap text that others wrote so that a model can tell where it ends.

    The fence carries a hash of the text, so the same text gives the same fence (a prompt must be the same again
    after a crash), and no text can contain the line that closes its own.
    """
    mark = hashlib.sha256(f"{label}\0{text}".encode("utf-8", "surrogatepass")).hexdigest()[:20]
    return f"<<data {label} {mark}\n{text.rstrip()}\n{mark} data>>"


def sha256(text: str) -> str:
    """The hash that a text is kept and pinned by."""
    return hashlib.sha256(text.encode()).hexdigest()


class PromptSet:
    """The texts that belong together, by name: an installation's, or those that a run is pinned to.

    See `backend.domain.ports.Prompts` for what roles do with them.
    """

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.texts = dict(texts)
        self.hashes = {name: sha256(text) for name, text in sorted(self.texts.items())}
        # A text may come from the database: whoever writes there must not run code here.
        self._environment = ImmutableSandboxedEnvironment(
            loader=DictLoader(self.texts),
            undefined=StrictUndefined,
            autoescape=False,  # noqa: S701 - prompts are plain text; what others wrote is fenced, not escaped
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        self._environment.filters["fence"] = fence

    def opening(self, name: str, /, **facts: Any) -> Opening:
        """Render the prompt `name`; every fact that the text uses must be given."""
        system, _, user = self._render(name, facts).partition(f"\n{SEPARATOR}\n")
        messages = [{"role": "system", "content": system.strip()}]
        if user.strip():
            messages.append({"role": "user", "content": user.strip()})
        return Opening(tuple(messages), self.prompt_hash(name))

    def text(self, name: str, /, **facts: Any) -> str:
        """Render a prompt that is a piece of text rather than a conversation."""
        return self._render(name, facts).strip()

    def prompt_hash(self, name: str) -> str:
        """The sha256 of a prompt and of the rules that every prompt includes; calls carry it."""
        return sha256("\0".join((self.texts[name], self.texts.get(RULES, ""))))

    def version(self, role: Role) -> str:
        """The version of all prompts of a role, which one setting holds together; empty for a role that has none here.

        The hash of its prompt where a role has one; of the hashes of all of them, in the order of their names, where it
        has several (`pm_analyze`, `pm_plan`, `pm_report`).
        """
        hashes = [self.prompt_hash(name) for name in self.hashes if name.partition("_")[0] == role]
        return hashes[0] if len(hashes) == 1 else sha256("\0".join(hashes)) if hashes else ""

    def missing(self, config: RunConfig) -> str | None:
        """Why these are not the prompts that `roles.*.prompt_version` asks for, in a sentence; None when they are.

        The setting is the beginning of a version, or `latest`. Roles without a seat are not looked at.
        """
        for role in Role:
            seat = config.role(role)
            wanted, here = seat.prompt_version, self.version(role)
            if seat.enabled and wanted not in (None, LATEST) and not here.startswith(str(wanted)):
                return (
                    f"The settings ask for version {wanted} of the prompts of {role}, but this installation has "
                    f"{here[:12] or 'none'}: retry the run under a release that has it, or start a run with "
                    f"roles.{role}.prompt_version set to what is here, or to {LATEST}."
                )
        return None

    def _render(self, name: str, facts: Mapping[str, Any]) -> str:
        try:
            return self._environment.get_template(name).render(**facts)
        except TemplateNotFound as error:
            raise StepFailed(
                "prompt_gone",
                f"The prompts that the run is pinned to have no {error.name}, which this release asks for: let the run "
                "go on under the release that it began with, or start a new one.",
            ) from error
        except TemplateError as error:
            raise StepFailed(
                "prompt_unusable",
                f"The prompt {name} that the run is pinned to cannot be used by this release: {error.message}. Let the "
                "run go on under the release that it began with, or start a new one.",
            ) from error


@cache
def installed() -> PromptSet:
    """The prompts of this installation."""
    files = (resources.files("backend.agents") / "prompts").iterdir()
    texts = {file.name.removesuffix(".md"): file for file in files if file.name.endswith(".md")}
    return PromptSet({name: file.read_text(encoding="utf-8") for name, file in texts.items()})
