"""A small company behind a real model endpoint: what each role answers for the brief `BRIEF`, by its place in the run.

`SmallCompany()` is a script for `tests.openai_server.OpenAIServer`. It plans two tasks that can be done at the same
time and a third that needs both; `leaks=True` makes a developer leave a credential in the code, again and again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.openai_server import Reply, error, position_of, tool_calls

BRIEF = (
    "A Python package `textstat` that counts the words and the lines of a text, with a command line that prints both."
)

Call = tuple[str, Mapping[str, Any]]
Turn = tuple[Call, ...]

_ANALYSIS = {
    "summary": "Count words and lines of a text, as a library and on the command line.",
    "requirements": ["Words are what white space separates.", "Lines are counted as str.splitlines does."],
    "assumptions": ["The standard library is enough."],
    "risks": ["Very long lines."],
}

_PLAN = {
    "approach": "One module for each count; the command line uses both.",
    "tasks": [
        {"key": "words", "title": "Count words", "acceptance_criteria": ["count_words('a b') is 2"]},
        {"key": "lines", "title": "Count lines", "acceptance_criteria": ["count_lines('a\\nb') is 2"]},
        {
            "key": "cli",
            "title": "Print both counts",
            "acceptance_criteria": ["main(['a b']) returns 0"],
            "depends_on": ["words", "lines"],
        },
    ],
}

_WORDS = '''"""Counts words."""


def count_words(text: str) -> int:
    """Return how many words white space separates."""
    return len(text.split())
'''

_LINES = '''"""Counts lines."""


def count_lines(text: str) -> int:
    """Return the number of lines."""
    return len(text.splitlines())
'''

_CLI = '''"""The command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from textstat.lines import count_lines
from textstat.words import count_words


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the words and the lines of the first argument."""
    text = (sys.argv[1:] if arguments is None else list(arguments))[0]
    sys.stdout.write(f"{count_words(text)} {count_lines(text)}\\n")
    return 0
'''

_LEAK = """
AWS_ACCESS_KEY_ID = "AKIAQ7RZ2MPLX4VNT6WD"
PASSWORD = "kJ8#vQ2!mZ5x"
"""

_TEST = """from textstat.{key} import {function}


def test_{key}() -> None:
    assert {function}({argument}) == {result}
"""

_TESTS = {
    "words": _TEST.format(key="words", function="count_words", argument="'a b'", result=2),
    "lines": _TEST.format(key="lines", function="count_lines", argument="'a\\nb'", result=2),
    "cli": _TEST.format(key="cli", function="main", argument="['a b']", result=0),
}

_ACCEPTANCE = '''"""Acceptance tests. criteria: words#1, lines#1, cli#1."""

from textstat.cli import main
from textstat.lines import count_lines
from textstat.words import count_words


def test_two_words() -> None:
    assert count_words("a b") == 2


def test_two_lines() -> None:
    assert count_lines("a\\nb") == 2


def test_the_command_line_succeeds() -> None:
    assert main(["a b"]) == 0
'''

_README = """# textstat

`textstat.words.count_words` counts words, `textstat.lines.count_lines` counts lines; `textstat/cli.py` prints both.
"""

_WORKFLOW = """---
name: ci
"on":
  push:
    branches: [main]
permissions:
  contents: read
jobs:
  test:
    runs-on: ubuntu-24.04
    steps:
      - name: Say hello
        run: echo hello
"""


def _submit(summary: str) -> tuple[Turn, Turn]:
    turn: Turn = (("submit", {"summary": summary}),)
    return turn, turn


def _write(path: str, content: str) -> Call:
    return "write_file", {"path": path, "content": content}


@dataclass(frozen=True)
class SmallCompany:
    """The script. Every reply takes `delay` seconds and bills `prompt` and `completion` tokens."""

    leaks: bool = False
    delay: float = 0.0
    prompt: int = 400
    completion: int = 100

    def __call__(self, body: dict[str, Any], headers: Mapping[str, str]) -> Reply:
        """Answer the call that the headers name."""
        place = position_of(headers)
        if place is None:
            return error(400, "The request does not say which call it is.")
        _, node, task, _, ordinal = place
        answers = self._answers(node, task, body)
        if ordinal > len(answers):
            return error(500, f"Nothing is scripted for {place}.")
        reply = tool_calls(*answers[ordinal - 1])
        return reply.billed(self.prompt, self.completion).after(self.delay)

    def _answers(self, node: str, task: str | None, body: dict[str, Any]) -> tuple[Turn, ...]:
        by_node: dict[str, Callable[[], tuple[Turn, ...]]] = {
            "pm_analyze_requirements": lambda: ((("analysis", _ANALYSIS),),),
            "pm_create_tasks": lambda: ((("plan", _PLAN),),),
            "dev_work": lambda: self._develop(task or ""),
            "lead_review": lambda: ((("review", {"decision": "approve", "summary": "It does what was asked."}),),),
            "qa_test": lambda: (
                (_write("tests/test_acceptance.py", _ACCEPTANCE), ("run_tests", {})),
                *_submit("Every criterion has a test."),
            ),
            "security_scan": lambda: ((("triage", _triage(body)),),),
            "docs_finalize": lambda: ((_write("README.md", _README),), *_submit("The README names what is there.")),
            "devops_prepare": lambda: (
                (_write(".github/workflows/ci.yml", _WORKFLOW),),
                *_submit("A workflow."),
            ),
            "final_decision": lambda: (
                (("report", {"headline": "textstat is ready.", "summary": "Words and lines are counted."}),),
            ),
        }
        return by_node[node]()

    def _develop(self, key: str) -> tuple[Turn, ...]:
        source = {"words": _WORDS, "lines": _LINES, "cli": _CLI}.get(key, "")
        if key not in _TESTS:  # a task that a gate made
            still = _WORDS + _LEAK + f"# {key} changed nothing that matters\n"
            return ((_write("textstat/words.py", still),), *_submit("It looks better now."))
        leak = _LEAK if self.leaks and key == "words" else ""
        writes = (
            _write("textstat/__init__.py", '"""Counts words and lines."""\n'),
            _write(f"textstat/{key}.py", source + leak),
            _write(f"tests/test_{key}.py", _TESTS[key]),
        )
        return (writes, (("run_tests", {}),), *_submit(f"{key} is done."))


def _triage(body: dict[str, Any]) -> dict[str, Any]:
    asked = "\n".join(str(message.get("content")) for message in body["messages"])
    names = sorted(set(re.findall(r"(?m)^([0-9a-f]{32}) (?:HIGH|CRITICAL)", asked)))
    found = [
        {"fingerprint": name, "explanation": "A credential in code.", "proposal": "Read it from the environment."}
        for name in names
    ]
    return {"summary": json.dumps(names), "findings": found}
