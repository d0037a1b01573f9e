"""Where embedded servers keep their data and which user they run as: PostgreSQL refuses to run as root.

Ordinary users run them as themselves, below the state directory. Root runs them in a user namespace that maps root to
an unprivileged user (nothing is copied, files stay root's), or, where the kernel or container refuses that, as another
user, with data and programs where that user can reach them.
"""

from __future__ import annotations

import os
import pwd
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from backend.engine.embedded.binaries import CLEAN, Binaries, postgres
from backend.engine.embedded.processes import OURSELVES, Identity, run_once
from backend.errors import Unavailable

# `nobody` comes last: sandboxed commands may run as nobody, and must not share a user with the database.
USERS = ("postgres", "daemon", "nobody")
ELSEWHERE = Path("/var/lib/company")


@dataclass(frozen=True, slots=True)
class Place:
    """A folder for data, the user that owns it and the PostgreSQL programs this user can run."""

    folder: Path
    identity: Identity
    postgres: Binaries

    def prepare(self) -> None:
        """Make the folder: closed to others, but for the way through to what the servers' user owns."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        self.folder.chmod(0o711 if self.identity.kind == "setuid" else 0o700)

    def make_folder(self, name: str) -> Path:
        """A folder that only the servers' user can read."""
        path = self.folder / name
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.give(path)
        return path

    def give(self, path: Path) -> None:
        """Make the servers' user the owner of a file or folder."""
        if self.identity.kind == "setuid":
            os.chown(path, self.identity.uid, self.identity.gid)


def find(home: Path, *, kinds: Sequence[str] = ("userns", "setuid"), elsewhere: Path = ELSEWHERE) -> Place:
    """Find the place below (or, if need be, beside) the state directory.

    `kinds` are what root may try, in order; `elsewhere` is where root keeps data of a state directory that the
    servers' user cannot enter.

    Raises `Unavailable` when the data belongs to somebody else, or nothing works.
    """
    programs = postgres()
    folder = folder_of(home)
    owner = (folder / "postgres").stat().st_uid if (folder / "postgres").exists() else None
    if os.geteuid() != 0:
        if owner not in (None, os.geteuid()):
            raise Unavailable(
                f"The data in {folder} belongs to another user (number {owner}): run the company as that user, or set "
                "COMPANY_HOME to another directory.",
                code="embedded_foreign_data",
            )
        return Place(folder, _as_ourselves(programs), programs)
    for kind in kinds:
        place = _as_root(kind, folder, owner, programs, partial(_elsewhere, home, elsewhere))
        if place is not None:
            return place
    raise Unavailable(
        "PostgreSQL refuses to run as root, and neither a user namespace nor a change of user works here: run the "
        "company as an ordinary user, or set DATABASE_URL and REDIS_URL to servers of your own.",
        code="embedded_root_refused",
    )


def _as_ourselves(programs: Binaries) -> Identity:
    """Us; in a namespace where we have a name when this machine knows none (initdb wants one)."""
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        for user in _users(None):
            identity = Identity("userns", user.pw_uid, user.pw_gid, user.pw_name)
            if _runs(programs, identity):
                return identity
    return OURSELVES


def _as_root(
    kind: str, folder: Path, owner: int | None, programs: Binaries, beside: Callable[[], Path]
) -> Place | None:
    for user in _users(owner if kind == "setuid" else None):
        if kind == "userns" and owner in (None, 0):
            identity = Identity("userns", user.pw_uid, user.pw_gid, user.pw_name)
            if _runs(programs, identity):
                return Place(folder, identity, programs)
        if kind == "setuid" and owner != 0:
            identity = Identity("setuid", user.pw_uid, user.pw_gid, user.pw_name)
            reachable = folder if _reachable(folder, identity) else beside()
            own = programs if _runs(programs, identity) else programs.copied_to(reachable / "programs", identity)
            if _runs(own, identity):
                return Place(reachable, identity, own)
    return None


def _users(owner: int | None) -> list[pwd.struct_passwd]:
    known = {user.pw_name: user for user in pwd.getpwall() if user.pw_uid != 0}
    if owner is not None:
        return [user for user in known.values() if user.pw_uid == owner]
    return [known[name] for name in USERS if name in known]


def _runs(programs: Binaries, identity: Identity) -> bool:
    argv = [programs.program("postgres"), "--version"]
    return run_once(argv, environment=CLEAN, identity=identity, seconds=20).returncode == 0


def _reachable(folder: Path, identity: Identity) -> bool:
    for parent in folder.parents:
        if not parent.exists():
            continue
        facts = parent.stat()
        bits = {identity.uid == facts.st_uid: 0o100, identity.gid == facts.st_gid: 0o010}.get(True, 0o001)
        if not facts.st_mode & bits:
            return False
    return True


def folder_of(home: Path) -> Path:
    """Where the servers of a state directory keep their data."""
    pointer = home / "embedded.location"
    return Path(pointer.read_text().strip()) if pointer.exists() else home / "embedded"


def _elsewhere(home: Path, above: Path) -> Path:
    """A folder of its own below `above`, remembered in the state directory, which others cannot enter."""
    pointer = home / "embedded.location"
    if not pointer.exists():
        unfinished = pointer.with_suffix(".new")
        unfinished.write_text(f"{above / secrets.token_hex(8)}\n")
        unfinished.rename(pointer)
    return Path(pointer.read_text().strip())
