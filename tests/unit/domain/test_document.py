"""Documents must name only what is there."""

import pytest

from backend.domain.document import Repository, misfits

REPOSITORY = Repository(
    ("README.md", "Makefile", "tally/__init__.py", "tally/cli.py", "tests/test_cli.py", "pyproject.toml"),
    {
        "tally/cli.py": 'def main(): ...\nparser.add_argument("--file")\n',
        "pyproject.toml": 'tally = "tally.cli:run"',
        "Makefile": "test:\n\tpytest\n",
    },
)


@pytest.mark.parametrize(
    "text",
    [
        "See `tally/cli.py` and `cli.py`, `tests/` and `pyproject.toml`.",
        "Call `main()` of `tally.cli` or `tally.cli.main`.",
        "```sh\ntally --file x\npython -m tally --file x\nmake test\npip install --upgrade x\n# a comment\n```",
        "```sh\nLEDGER=x tally --help\ncat x | sort --unique\n$ tally --version\n```",
        "`words in code` and `12.50`, `--not-checked-here`",
        "```python\nnothing_here_is_checked()\n```",
        "",
    ],
)
def test_what_exists_may_be_named(text: str) -> None:
    assert misfits({"README.md": text}, REPOSITORY) == []


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("See `tally/ledger.py`.", "tally/ledger.py"),
        ("See `docs/`.", "docs/"),
        ("Call `summarise()`.", "summarise"),
        ("Import `tally.money`.", "tally.money"),
        ("```sh\ntally --verbose\n```", "--verbose"),
        ("```sh\npython -m ledger\n```", "ledger"),
        ("```sh\nmake deploy\n```", "make deploy"),
        ("```bash\nledgerctl start\n```", "ledgerctl"),
    ],
)
def test_what_does_not_exist_is_named_as_a_misfit(text: str, word: str) -> None:
    (found,) = misfits({"README.md": text}, REPOSITORY)
    assert found.startswith("README.md: ")
    assert word in found


def test_the_same_misfit_is_told_once() -> None:
    assert len(misfits({"README.md": "`a/b.py` `a/b.py`"}, REPOSITORY)) == 1


def test_a_huge_document_is_read_in_reasonable_time() -> None:
    text = "`" * 50_000 + "```sh\n" + "x `y/z.py` " * 20_000
    assert misfits({"README.md": text}, REPOSITORY) == ["README.md: the path `y/z.py` does not exist."]
