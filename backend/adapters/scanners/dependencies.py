"""The dependency audit: pip-audit where its data can be reached; else a failure, with what is known all the same.

The shipped advisories are a selection: they can show that a version is weak, never that one is sound. The report says
which data judged, and how old they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import operator
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from packaging.version import InvalidVersion, Version

from backend.adapters.checks.scratch import Scratch
from backend.adapters.scanners.declared import Declared, Dependency, declared
from backend.adapters.scanners.found import Outcome, Raw, installed
from backend.domain.finding import Severity
from backend.domain.ports import ScannerRun

NAME = "dependencies"
_ADVISORIES = Path(__file__).with_name("advisories.yaml")
_SECONDS = 60.0
_LARGEST = 20_000_000
_SIGNS: dict[str, Callable[[Any, Any], bool]] = {"<": operator.lt, "<=": operator.le, ">=": operator.ge}


class _NoAnswer(Exception):
    """pip-audit did not answer; the message says why."""


async def scan(place: Scratch, texts: Sequence[str], *, online: bool, seconds: float = _SECONDS) -> Outcome:
    """Audit what the project declares, in a minute at most; with nothing declared there is nothing to fail."""
    started = time.monotonic()
    wanted = declared(place.tree, texts)
    pinned = [dependency for dependency in wanted.python if dependency.version is not None]
    found = [_unpinned(dependency) for dependency in wanted.python if dependency.version is None]
    source, why, judged = "nothing declared", None, 0
    if pinned:
        source, audited, why = await _audit(pinned, min(seconds, _SECONDS) if online else None)
        found += audited
        judged = len(pinned) if why is None else 0
    why = _complaint(wanted, why)
    files = len({dependency.path for dependency in wanted.python}) + len(wanted.unreadable)
    run = ScannerRun(
        NAME,
        source,
        files,
        files - len(wanted.unreadable) if judged == len(pinned) else 0,
        time.monotonic() - started,
        why,
    )
    return Outcome(run, tuple(found))


def _complaint(wanted: Declared, why: str | None) -> str | None:
    reasons = [f"cannot read {item}" for item in wanted.unreadable[:3]]
    if wanted.foreign:
        reasons.append(f"npm packages cannot be audited here ({', '.join(wanted.foreign[:3])})")
    if why:
        reasons.append(why)
    return "; ".join(reasons) or None


def _unpinned(dependency: Dependency) -> Raw:
    message = f"{dependency.name} is not pinned to one version, so what will be installed cannot be audited."
    return Raw("unpinned", Severity.LOW, dependency.path, dependency.line, message)


async def _audit(pinned: Sequence[Dependency], seconds: float | None) -> tuple[str, list[Raw], str | None]:
    """Return which data judged, what it found, and why it cannot be trusted; without `seconds` nobody is asked."""
    lacking = "no complete advisory data can be reached"
    if seconds is not None:
        try:
            return f"pip-audit {installed('pip-audit')}", await _pip_audit(pinned, seconds), None
        except _NoAnswer as failed:
            lacking += f" ({failed})"
    data = await asyncio.to_thread(_shipped)
    source = _described(data)
    found = [raw for dependency in pinned for raw in _known(dependency, data["advisories"])]
    names = sorted({dependency.name for dependency in pinned})
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (
        source,
        found,
        f"{lacking}, so nobody can vouch for {', '.join(names[:5])}{more}; there were only {source}. "
        "Let this machine reach the package index, or take `dependencies` out of /checks/scanners",
    )


def _described(data: Mapping[str, Any]) -> str:
    age = (datetime.now(UTC).date() - data["as_of"]).days
    return (
        f"{len(data['advisories'])} shipped advisories as of {data['as_of']} "
        f"({max(0, age)} days old, a selection that is not complete)"
    )


def _shipped() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(_ADVISORIES.read_text("utf-8"))
    return loaded


def _known(dependency: Dependency, advisories: Sequence[Mapping[str, Any]]) -> list[Raw]:
    try:
        installed = Version(str(dependency.version))
    except InvalidVersion:
        message = f"The version {dependency.version} of {dependency.name} is not a version."
        return [Raw("version", Severity.HIGH, dependency.path, dependency.line, message)]
    return [
        Raw(
            str(advisory["id"]),
            Severity(advisory["severity"]),
            dependency.path,
            dependency.line,
            f"{dependency.name} {installed} has {advisory['id']} (affected: {' or '.join(advisory['affected'])}); "
            f"see {advisory['source']}.",
        )
        for advisory in advisories
        if advisory["package"] == dependency.name and any(_within(installed, span) for span in advisory["affected"])
    ]


def _within(installed: Version, span: str) -> bool:
    """Whether a version lies in a range such as `>=2.3.0,<2.31.0`; release candidates count by their order alone."""
    for bound in span.split(","):
        sign = bound[: len(bound) - len(bound.lstrip("<>="))]
        if not _SIGNS[sign](installed, Version(bound[len(sign) :])):
            return False
    return True


async def _pip_audit(pinned: Sequence[Dependency], seconds: float) -> list[Raw]:
    """Ask pip-audit about exact versions, which installs and runs nothing; raises `_NoAnswer`."""
    with tempfile.TemporaryDirectory(prefix="company-audit-") as name:
        listing = Path(name) / "requirements.txt"
        rows = sorted({f"{dependency.name}=={dependency.version}" for dependency in pinned})
        await asyncio.to_thread(listing.write_text, "\n".join(rows) + "\n")
        options = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--timeout", "10", "-f", "json"]
        told = await _output(
            [sys.executable, "-I", "-m", "pip_audit", *options, "--cache-dir", name, "-r", str(listing)],
            name,
            seconds,
        )
    try:
        answer = json.loads(told)["dependencies"]
        if any("skip_reason" in item for item in answer):
            raise _NoAnswer("pip-audit does not know all of them")
        weak = {item["name"]: item["vulns"] for item in answer}
        return [_vulnerable(dependency, weakness) for dependency in pinned for weakness in weak[dependency.name]]
    except (ValueError, KeyError, TypeError) as bad:
        raise _NoAnswer("pip-audit gave no answer that can be read") from bad


def _vulnerable(dependency: Dependency, weakness: dict[str, Any]) -> Raw:
    mended = ", ".join(weakness.get("fix_versions", [])) or "no version yet"
    message = f"{dependency.name} {dependency.version} has {weakness['id']}; it is mended in {mended}."
    return Raw(str(weakness["id"]), Severity.HIGH, dependency.path, dependency.line, message)


async def _output(argv: Sequence[str], home: str, seconds: float) -> bytes:
    """Return what a program printed; raises `_NoAnswer` when it did not end by itself or printed without end."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={"HOME": home, "PATH": os.defpath},
        cwd=home,
        start_new_session=True,
    )
    assert process.stdout is not None
    told = bytearray()
    try:
        async with asyncio.timeout(seconds):
            while chunk := await process.stdout.read(65_536):
                told += chunk
                if len(told) > _LARGEST:
                    raise _NoAnswer("pip-audit was killed at the limit of output")
            code = await process.wait()
    except TimeoutError:
        raise _NoAnswer("pip-audit was killed at the limit of time") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.communicate()  # also what is left in the pipe, without which it is never over
    if code < 0:
        raise _NoAnswer(f"pip-audit died of {signal.Signals(-code).name}")
    return bytes(told)
