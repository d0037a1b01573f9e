"""Reading a JUnit report that hostile code may have written: bounded, without entities, the worst verdict counting."""

from __future__ import annotations

import re
from dataclasses import dataclass
from xml.etree import ElementTree  # noqa: S405  (documents with a DTD are refused below)

_WORST = ("error", "failed", "skipped", "passed")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a report says about one test."""

    outcome: str
    seconds: float
    message: str


def parse(body: bytes) -> dict[tuple[str, str], Verdict] | None:
    """Return the verdicts by (class name, name); None for what is no JUnit report."""
    if not body or b"<!DOCTYPE" in body or b"<!ENTITY" in body:
        return None
    try:
        root = ElementTree.fromstring(body)  # noqa: S314  (as above; its size is bounded by the caller)
    except (ElementTree.ParseError, ValueError, RecursionError):
        return None
    if root.tag not in {"testsuites", "testsuite"}:
        return None
    found: dict[tuple[str, str], Verdict] = {}
    for case in root.iter("testcase"):
        key = (case.get("classname", ""), case.get("name", ""))
        verdict = _verdict(case)
        known = found.get(key)
        if known is None or _WORST.index(verdict.outcome) < _WORST.index(known.outcome):
            found[key] = verdict
    return found


def _verdict(case: ElementTree.Element) -> Verdict:
    seconds = re.fullmatch(r"\d{1,9}(\.\d{1,9})?", case.get("time", "0"))
    for tag, outcome in (("error", "error"), ("failure", "failed"), ("skipped", "skipped")):
        found = case.find(tag)
        if found is not None:
            message = (found.get("message") or "") + "\n" + (found.text or "")
            return Verdict(outcome, float(seconds[0]) if seconds else 0.0, message.strip()[:4000])
    return Verdict("passed", float(seconds[0]) if seconds else 0.0, "")


def address(test_id: str) -> tuple[str, str]:
    """Return where a pytest id stands in a JUnit report: (class name, name)."""
    path, bracket, parameters = test_id.partition("[")
    names = path.split("::")
    names[0] = re.sub(r"\.py$", "", names[0].replace("/", "."))
    names[-1] += bracket + parameters
    return ".".join(names[:-1]), names[-1]
