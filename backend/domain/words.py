"""What a model says while it says it, as live followers may see it: whole words, and nothing that looks like a secret.

Words are shown and kept nowhere: what counts is the reply in the journal.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from backend.domain.secret import masked

_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|[^u])", re.DOTALL)
_OPEN_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*(\\(?:u[0-9a-fA-F]{0,3})?)$")
_LETTERS = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_CONTEXT_LINES = 2
_LONGEST_CONTEXT = 400
"""What was shown already is looked at again for secrets that go on: so many lines, so many characters."""


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of a reply as it arrives: of its text or, with `tool`, of the arguments of a call of that tool."""

    text: str
    tool: str | None = None


class Passage:
    """One text that grows: a reply's content, or a tool call's arguments, whose JSON escapes are read as characters.

    The last word is held back until it is whole, since half of a secret looks like nothing.
    """

    def __init__(self, tool: str | None = None) -> None:
        self.tool = tool
        self._raw = ""
        self._text = ""
        self._shown = ""

    def add(self, text: str) -> None:
        """Take in what arrived; costs nothing yet."""
        self._raw += text

    def take(self, *, whole: bool = False) -> str:
        """What may be shown and was not yet; with `whole`, nothing follows any more."""
        self._text += self._read()
        words = len(self._text) if whole else max(self._text.rfind(space) for space in " \n\t") + 1
        seen = masked(self._text[:words])
        fresh = seen[len(self._shown) :]
        self._text, self._shown = _context(self._text, words, seen)
        # Escapes come as halves of surrogate pairs.
        return fresh.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\ufffd")

    def _read(self) -> str:
        if self.tool is None:
            raw, self._raw = self._raw, ""
            return raw
        half = _OPEN_ESCAPE.search(self._raw)
        end = len(self._raw) if half is None else half.start(1)
        raw, self._raw = self._raw[:end], self._raw[end:]
        return _ESCAPE.sub(_character, raw)


def _context(text: str, words: int, seen: str) -> tuple[str, str]:
    """Forget lines that no secret can reach from here: what is still looked at, and what of it was shown."""
    start = words
    for _ in range(_CONTEXT_LINES):
        start = max(0, text.rfind("\n", 0, max(0, start - 1)) + 1)
    if words - start > _LONGEST_CONTEXT:
        start = text.find(" ", words - _LONGEST_CONTEXT, words) + 1 or words
    return text[start:], masked(text[start:words]) if start else seen


def _character(escape: re.Match[str]) -> str:
    said = escape[1]
    return chr(int(said[1:], 16)) if len(said) == 5 else _LETTERS.get(said, said)
