"""Which files a role's change may touch: QA tests, docs documents, devops deployment files; developers the rest."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from backend.domain.role import Role

_TEST = re.compile(
    r"(^|/)(tests?|testing|__tests__|spec)/|(^|/)(test_[^/]+|conftest)\.py$|[._-](test|spec)\.[a-z]+$|_test\.[a-z]+$"
)
_DOCUMENT = re.compile(r"(?i)(^|/)(docs?|adr|decisions)/|\.(md|rst|adoc)$|(^|/)(README|CHANGELOG|LICENSE|NOTICE)[^/]*$")
_DEPLOYMENT = re.compile(
    r"(?i)(^|/)([^/]*Dockerfile[^/]*|Containerfile[^/]*|\.dockerignore|[^/]*compose[^/]*\.ya?ml|Makefile|\.gitlab-ci\.yml"
    r"|\.env\.example|\.hadolint\.ya?ml|\.yamllint[^/]*|\.pre-commit-config\.yaml)$"
    r"|(^|/)(\.github|\.gitlab|deploy|deployment|k8s|helm|terraform|ops)/"
)

_MAY: dict[Role, re.Pattern[str]] = {Role.QA: _TEST, Role.DOCS: _DOCUMENT, Role.DEVOPS: _DEPLOYMENT}
_WHAT = {Role.QA: "tests", Role.DOCS: "documents", Role.DEVOPS: "deployment files"}


def is_test(path: str) -> bool:
    """Whether a path looks like a test file or something only tests use."""
    return _TEST.search(path) is not None


def outside(role: Role, paths: Iterable[str], accepted_tests: Collection[str] = ()) -> list[str]:
    """Return the paths that a change of `role` must not touch, sorted."""
    allowed = _MAY.get(role)
    kept = frozenset(accepted_tests) if role is not Role.QA else frozenset()
    return sorted(path for path in paths if path in kept or (allowed is not None and not allowed.search(path)))


def objection(role: Role, paths: Iterable[str], accepted_tests: Collection[str] = ()) -> str | None:
    """Return one sentence on what a change touches beyond the role's remit, or None."""
    strays = outside(role, paths, accepted_tests)
    if not strays:
        return None
    named = ", ".join(strays[:10])
    if role in _WHAT:
        return f"Your change touches files that are not {_WHAT[role]}: {named}. Put them back as they were."
    return f"Your change touches tests that QA has accepted: {named}. Put them back as they were and mend the code."
