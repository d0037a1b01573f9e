"""The copy that scanners see: without configuration or remarks by which the scanned could wave itself through.

Line numbers stay as they are.
"""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from backend.adapters.workspace import tree

_CONFIGURATION = (
    ".bandit", "bandit.yaml", "bandit.yml", ".secrets.baseline", ".semgrepignore", ".semgrep.yml", ".semgrep.yaml",
    ".gitleaks.toml", ".gitleaksignore", ".hadolint.yaml", ".hadolint.yml", ".yamllint", ".yamllint.yaml",
    ".yamllint.yml", "actionlint.yaml", "actionlint.yml", "zizmor.yml", "zizmor.yaml", ".pip-audit*",
)  # fmt: skip
_WAIVERS = re.compile(
    rb"(?i)\b(nosec|nosemgrep|noqa|(?:allow|white)list(?= +(?:nextline +)?secret)|gitleaks(?=:allow)"
    rb"|zizmor(?=: *ignore)|actionlint(?=:)|hadolint(?= +(?:global +)?ignore)|yamllint(?= +(?:disable|enable)))"
)
_LARGEST = 5_000_000


def prepare(root: Path) -> list[str]:
    """Neutralise a tree in place; return its text files, sorted, links left out."""
    texts: list[str] = []
    for entry in list(tree.entries(root)):
        path = Path(entry.path)
        configures = any(fnmatch(entry.name, pattern) for pattern in _CONFIGURATION)
        if configures and not entry.is_dir(follow_symlinks=False):
            path.unlink()
            continue
        if not entry.is_file(follow_symlinks=False):
            continue
        body = path.read_bytes()
        if b"\0" in body:
            continue
        path.write_bytes(_WAIVERS.sub(_broken, _utf8(body)))
        texts.append(str(PurePosixPath(path.relative_to(root))))
    return sorted(texts)


def _utf8(body: bytes) -> bytes:
    try:
        body.decode("utf-8")
    except UnicodeDecodeError:
        return body.decode("latin-1").encode("utf-8")
    return body


def _broken(found: re.Match[bytes]) -> bytes:
    """Spoil the word that a scanner looks for, at the same length."""
    return found[0][:1] + b"_" + found[0][2:]


def is_test(path: str) -> bool:
    """Whether a path is test code, where asserts and sample passwords are normal."""
    parts = PurePosixPath(path).parts
    name = parts[-1]
    return bool({"tests", "test"} & set(parts[:-1])) or name.startswith("test_") or name.endswith("_test.py")
