"""A role's change touches only what is the role's."""

import pytest

from backend.domain.remit import is_test, objection, outside
from backend.domain.role import Role


@pytest.mark.parametrize(
    "path",
    ["tests/acceptance/test_a.py", "test_a.py", "pkg/test_a.py", "src/a.test.ts", "a_test.go", "tests/data/x.json"],
)
def test_tests_are_known_by_their_place_or_name(path: str) -> None:
    assert is_test(path)


@pytest.mark.parametrize("path", ["tally/attest.py", "contest/a.py", "pyproject.toml", "latest.py", "conftest/a.py"])
def test_other_files_are_not(path: str) -> None:
    assert not is_test(path)


@pytest.mark.parametrize(
    ("role", "path", "allowed"),
    [
        (Role.QA, "tests/acceptance/test_a.py", True),
        (Role.QA, "tally/money.py", False),
        (Role.QA, "pytest.ini", False),
        (Role.DOCS, "README.md", True),
        (Role.DOCS, "docs/decisions/0001-a.md", True),
        (Role.DOCS, "setup.py", False),
        (Role.DEVOPS, "Dockerfile", True),
        (Role.DEVOPS, ".github/workflows/tests.yml", True),
        (Role.DEVOPS, "docker-compose.yml", True),
        (Role.DEVOPS, "tally/cli.py", False),
        (Role.DEVELOPER, "tally/cli.py", True),
    ],
)
def test_each_role_has_its_files(role: Role, path: str, allowed: bool) -> None:
    assert (outside(role, [path]) == []) is allowed


def test_accepted_tests_are_qas_alone() -> None:
    accepted = ["tests/acceptance/test_a.py"]
    assert outside(Role.DEVELOPER, accepted, accepted) == accepted
    assert outside(Role.QA, accepted, accepted) == []
    assert "QA has accepted" in str(objection(Role.DEVELOPER, accepted, accepted))
    assert objection(Role.DEVELOPER, ["tally/cli.py"], accepted) is None
