"""The replay provider: answers from a recording, at no cost, and names the step that a recording lacks."""

from __future__ import annotations

import json
import re
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from backend.adapters.llm.completion import Completion
from backend.domain.config import ProviderConfig
from backend.domain.model import CallFailed, Choice, ModelRequest, Position, ToolCall, Usage
from backend.domain.recording import RecordedReply, Recording, Step, place_of
from backend.errors import Invalid, NotFound

_NAME = re.compile(r"^[A-Za-z0-9][\w-]{0,99}$")
_LARGEST = 64 * 1024 * 1024
_KEPT = 16


class Recordings:
    """The recordings that ship in `templates/showcases`, and those in `<home>/recordings`; each is read once."""

    def __init__(self, home: Path | None = None) -> None:
        self._home = home
        self._read: dict[tuple[str, float], Recording] = {}

    def load(self, name: str) -> Recording:
        """Return a recording by its name (without `.yaml`); raises `NotFound` or `Invalid`."""
        if _NAME.match(name):
            shipped = resources.files("templates").joinpath("showcases").joinpath(f"{name}.yaml")
            own = self._home / "recordings" / f"{name}.yaml" if self._home is not None else None
            if shipped.is_file():
                return self._parsed(name, 0.0, shipped)
            if own is not None and own.is_file():
                return self._parsed(name, own.stat().st_mtime, own)
        raise NotFound(
            f"There is no recording '{name[:100]}': none ships under this name, and there is no such file in "
            "`recordings` of the state directory.",
            code="recording_not_found",
        )

    def _parsed(self, name: str, changed: float, file: Traversable) -> Recording:
        if (name, changed) not in self._read:
            if len(self._read) >= _KEPT:
                self._read.clear()
            self._read[(name, changed)] = parse(file.read_text("utf-8"), name=name)
        return self._read[(name, changed)]


def parse(text: str, *, name: str = "recording") -> Recording:
    """Read a recording from YAML; raises `Invalid` with what is wrong and where."""
    if len(text) > _LARGEST:
        raise Invalid(f"The recording {name} is larger than {_LARGEST // 1024**2} MB.")
    try:
        return Recording.model_validate(yaml.load(text, Loader=_loader()))  # noqa: S506 - the C form of the safe loader
    except yaml.YAMLError as broken:
        raise Invalid(f"The recording {name} is not YAML: {' '.join(str(broken).split())}.") from broken
    except ValidationError as wrong:
        first = wrong.errors(include_url=False)[0]
        where = "/".join(str(part) for part in first["loc"])
        raise Invalid(f"The recording {name} is not in order at /{where}: {first['msg']}.") from wrong


class ReplayProvider:
    """Answers calls from the recording that a provider of kind `replay` names."""

    def __init__(self, recordings: Recordings) -> None:
        self._recordings = recordings

    def call(
        self, choice: Choice, provider: ProviderConfig, request: ModelRequest, position: Position
    ) -> tuple[Completion, Usage]:
        """Return the recorded reply with its recorded usage; raises `CallFailed` of kind `not_covered`."""
        try:
            recording = self._recordings.load(provider.recording or choice.provider)
            place = place_of(request, position)
            step = recording.find(*place)
            if step is None:
                raise CallFailed("not_covered", recording.missing(*place))
            return _completion(step, step.reply_to(request.messages)), _usage(step)
        except (LookupError, NotFound, Invalid) as uncovered:
            raise CallFailed("not_covered", str(uncovered)) from uncovered


def _usage(step: Step) -> Usage:
    return Usage(step.usage.input, step.usage.output, min(step.usage.cached, step.usage.input))


def _completion(step: Step, reply: RecordedReply) -> Completion:
    calls = tuple(
        ToolCall(
            id=f"call_{step.node}_{step.visit}_{step.ordinal}_{number}",
            name=call.name,
            arguments=call.arguments if isinstance(call.arguments, str) else json.dumps(call.arguments),
        )
        for number, call in enumerate(reply.tool_calls, start=1)
    )
    raw: dict[str, Any] = {"recorded": True, "model": step.model, "reply": reply.model_dump(mode="json")}
    return Completion(reply.content or "", calls, reply.finish_reason, step.model, raw)


def _loader() -> Any:
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)
