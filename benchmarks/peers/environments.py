"""Environments of peers: made once from locks with hashes, below a cache folder, each with a time limit."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
INSTALL_SECONDS = 900.0


class Missing(Exception):
    """A peer cannot run here; the sentence says why."""


def made(name: str, python: str = "") -> Path:
    """The interpreter of a peer's environment; it is made when it is not there yet."""
    lock = ROOT / "requirements" / "peers" / f"{name}.lock"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "software-company-bench"
    folder = cache / f"{name}-{hashlib.sha256(lock.read_bytes()).hexdigest()[:16]}"
    interpreter = folder / "bin" / "python"
    if not (folder / "complete").exists():
        _make(name, lock, folder, interpreter, _python(python))
    return interpreter


def _make(name: str, lock: Path, folder: Path, interpreter: Path, python: str) -> None:
    print(f"Making the environment of {name} …", file=sys.stderr, flush=True)
    install = [str(interpreter), "-m", "pip", "install", "-q", "--require-hashes", "-r", str(lock)]
    for argv in ([python, "-m", "venv", "--clear", str(folder)], install):
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
        except subprocess.TimeoutExpired as late:
            raise Missing(f"its packages were not installed within {INSTALL_SECONDS:.0f} s") from late
        if done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            raise Missing(f"its packages cannot be installed here: {' '.join(said)[:200]}")
    (folder / "complete").touch()


def _python(wanted: str) -> str:
    """An interpreter of the wanted version: ours, one on the PATH, or one beside ours."""
    if not wanted or f"{sys.version_info.major}.{sys.version_info.minor}" == wanted:
        return sys.executable
    beside = sorted(Path(sys.base_prefix).resolve().parent.glob(f"*{wanted}*/bin/python{wanted}"))
    for candidate in (f"python{wanted}", *map(str, beside)):
        try:
            subprocess.run([candidate, "-c", ""], capture_output=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError):
            continue
        return candidate
    raise Missing(f"it needs Python {wanted}, and none is here")


def version(interpreter: Path, package: str) -> str:
    """The version of a package in an environment."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([interpreter, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
