"""Replacing a passage of a file as a model quotes it: exactly, then by indentation, then by one near match.

The passage must be found once; otherwise the answer says what is there instead, so that the next try can be right.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import SequenceMatcher

NEAR = 0.95
_LONGEST_FUZZY_LINES = 20_000
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Replaced:
    """The new text, which step of the ladder found the passage, and the line it begins in (from 1)."""

    text: str
    how: str
    line: int


@dataclass(frozen=True, slots=True)
class NotReplaced:
    """Nothing was changed; `reason` is for the model and quotes the nearest passages."""

    reason: str


def str_replace(text: str, old: str, new: str) -> Replaced | NotReplaced:
    """Replace `old`, which must stand in `text` once, by `new`."""
    if not old.strip():
        return NotReplaced("old_str is empty. Quote the lines that are to be replaced, or use write_file.")
    if old == new:
        return NotReplaced("old_str and new_str are equal, so nothing would change.")
    count = text.count(old)
    if count == 1:
        at = text.index(old)
        return Replaced(text[:at] + new + text[at + len(old) :], "exact", text.count("\n", 0, at) + 1)
    if count > 1:
        return NotReplaced(_many(_starts(text, old)))
    return _by_lines(text, old, new)


def _by_lines(text: str, old: str, new: str) -> Replaced | NotReplaced:
    lines = text.splitlines(keepends=True)
    wanted = old.strip("\n").splitlines()
    loose = [line.strip() for line in wanted]
    places = [at for at in _windows(lines, wanted) if [line.strip() for line in lines[at : at + len(wanted)]] == loose]
    if len(places) == 1:
        return _put(lines, places[0], wanted, new, "indentation")
    if len(places) > 1:
        return NotReplaced(_many([at + 1 for at in places]))
    ranked = _near(lines, loose)
    good = _apart([place for place in ranked if place[0] >= NEAR], len(wanted))
    if len(good) == 1:
        return _put(lines, good[0][1], wanted, new, "near match")
    if good:
        return NotReplaced(_many(sorted(at + 1 for _, at in good), "nearly "))
    return NotReplaced(_nothing(lines, ranked, len(wanted)))


def _windows(lines: list[str], wanted: list[str]) -> range:
    return range(max(0, len(lines) - len(wanted) + 1))


def _near(lines: list[str], wanted: list[str]) -> list[tuple[float, int]]:
    """Rank every passage of the same length by likeness, best first; long files are ranked by equal lines alone."""
    found: list[tuple[float, int]] = []
    target = "\n".join(wanted)
    matcher = SequenceMatcher(autojunk=False)
    matcher.set_seq2(target)
    stripped = [line.strip() for line in lines]
    known = set(wanted) - {""}
    for at in _windows(lines, wanted):
        window = stripped[at : at + len(wanted)]
        equal = sum(line in known for line in window) / len(wanted)
        if len(lines) > _LONGEST_FUZZY_LINES or (len(lines) > 500 and equal == 0):
            found.append((min(equal, NEAR - 0.01), at))
            continue
        matcher.set_seq1("\n".join(window))
        if matcher.real_quick_ratio() > 0.4 and matcher.quick_ratio() > 0.4:
            found.append((matcher.ratio(), at))
    return sorted(found, key=lambda place: (-place[0], place[1]))[:50]


def _apart(places: list[tuple[float, int]], length: int) -> list[tuple[float, int]]:
    """Keep the best of passages that overlap."""
    kept: list[tuple[float, int]] = []
    for place in places:
        if all(abs(place[1] - other[1]) >= length for other in kept):
            kept.append(place)
    return kept


def _put(lines: list[str], at: int, wanted: list[str], new: str, how: str) -> Replaced:
    """Put the new lines in, moved to the indentation that the file really has."""
    end = at + len(wanted)
    replacement = _moved(new.strip("\n").split("\n"), wanted, lines[at:end]) if new.strip("\n") else []
    closing = "\n" if lines[end - 1].endswith("\n") else ""
    body = "\n".join(replacement) + closing if replacement else ""
    return Replaced("".join(lines[:at]) + body + "".join(lines[end:]), how, at + 1)


def _moved(new: list[str], wanted: list[str], there: list[str]) -> list[str]:
    pairs = [(a, b) for a, b in zip(wanted, there, strict=True) if a.strip() and b.strip()]
    if not pairs:
        return new
    said, real = (line[: len(line) - len(line.lstrip())] for line in pairs[0])
    if said == real:
        return new
    return [real + line[len(said) :] if line.strip() and line.startswith(said) else line for line in new]


def _starts(text: str, old: str) -> list[int]:
    found: list[int] = []
    at = text.find(old)
    while at >= 0 and len(found) < 20:
        found.append(text.count("\n", 0, at) + 1)
        at = text.find(old, at + 1)
    return found


def _many(starts: list[int], how: str = "") -> str:
    shown = ", ".join(map(str, starts[:10]))
    return f"old_str {how}matches in {len(starts)} places (lines {shown}). Quote more lines around the one you mean."


def _nothing(lines: list[str], ranked: list[tuple[float, int]], length: int) -> str:
    blocks = []
    for _, at in sorted(_apart(ranked, length)[:_SHOWN], key=lambda place: place[1]):
        rows = [f"{number:>5}  {lines[number - 1].rstrip()}" for number in range(at + 1, at + 1 + min(length, 12))]
        blocks.append("\n".join(rows))
    if not blocks:
        return "old_str does not occur in the file, nor does anything like it. Read the file again."
    return "old_str does not occur in the file. The nearest passages are:\n" + "\n--\n".join(blocks)
