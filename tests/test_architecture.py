"""The rules of docs/architecture.md that a program can keep: who imports what, sizes, names."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = ("backend", "graphs")
PURE = ("backend/domain", "backend/agents", "graphs")
CLOCKS = {
    "now",
    "utcnow",
    "today",
    "time",
    "monotonic",
    "perf_counter",
    "uuid1",
    "uuid4",
    "uuid7",
    "urandom",
    "getrandbits",
}
EMPTY_WORDS = {
    "util",
    "utils",
    "helper",
    "helpers",
    "common",
    "misc",
    "base",
    "core",
    "manager",
    "service",
    "handler",
    "impl",
}
FILE_LINES = 500
TABLE_LINES = 600
TABLE_FILES = ("backend/adapters/db/tables.py", "migrations/versions/")
FUNCTION_LINES = 50
CATCH_ALL = ("backend/adapters/db/checkpointer/line.py", "backend/engine/reaper.py", "backend/worker/loop.py")

FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef

Finding = Iterator[str]
Rule = Callable[[str, ast.Module], Finding]


def files(*folders: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def tree(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(encoding="utf-8"), name)


def offences(rule: Rule, *folders: str) -> list[str]:
    return [f"{name}:{found}" for name in files(*folders) for found in rule(name, tree(name))]


def imports(module: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def is_under(name: str, *tops: str) -> bool:
    """Whether a module or file is one of the tops or lies in it: `backend/cli` is a file or a folder."""
    return any(name == top or name.startswith((f"{top}.", f"{top}/")) for top in tops)


def only_in(packages: tuple[str, ...], places: tuple[str, ...]) -> Rule:
    def rule(name: str, module: ast.Module) -> Finding:
        if not is_under(name, *places):
            yield from (f"{line} imports {what}" for line, what in imports(module) if is_under(what, *packages))

    return rule


def test_import_linter_finds_every_layer_in_its_place() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("packages", "places"),
    [
        (("langgraph",), ("graphs", "backend/engine", "backend/adapters/db/checkpointer")),
        (("celery", "kombu"), ("backend/worker",)),
        # The composition root serves the application that the api makes.
        (("fastapi", "starlette"), ("backend/api", "backend/cli/server.py")),
        (("uvicorn",), ("backend/api", "backend/cli")),
        (("langchain_openai", "openai"), ("backend/adapters/llm",)),
        (
            ("sqlalchemy", "asyncpg"),
            ("backend/adapters", "backend/operations", "backend/engine", "backend/api", "backend/worker"),
        ),
        (("typer", "rich"), ("backend/cli",)),
        (("subprocess",), ("backend/adapters", "backend/engine", "backend/cli")),
    ],
)
def test_libraries_stay_where_they_belong(packages: tuple[str, ...], places: tuple[str, ...]) -> None:
    assert offences(only_in(packages, places), *CODE) == []


def test_a_graph_knows_the_domain_the_roles_and_langgraph_alone() -> None:
    def rule(name: str, module: ast.Module) -> Finding:
        for line, what in imports(module):
            if is_under(what, "backend") and not is_under(what, "backend.domain", "backend.agents", "backend.errors"):
                yield f"{line} imports {what}"

    assert offences(rule, "graphs") == []


def test_domain_roles_and_graphs_read_no_clock_and_draw_no_lots() -> None:
    def rule(name: str, module: ast.Module) -> Finding:
        for node in ast.walk(module):
            if isinstance(node, ast.Call):
                called = node.func
                word = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
                if word in CLOCKS:
                    yield f"{node.lineno} calls {word}"

    assert offences(rule, *PURE) == []


def test_domain_roles_and_graphs_do_no_input_or_output() -> None:
    def rule(name: str, module: ast.Module) -> Finding:
        for node in ast.walk(module):
            if isinstance(node, ast.Call):
                called = node.func
                word = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
                if word in {"open", "print", "input", "write_text", "write_bytes", "mkdir", "unlink", "getenv"}:
                    yield f"{node.lineno} calls {word}"

    assert offences(rule, *PURE) == []


def test_only_the_settings_read_the_environment() -> None:
    def rule(name: str, module: ast.Module) -> Finding:
        for node in ast.walk(module):
            if isinstance(node, ast.Attribute) and node.attr in {"environ", "environb", "getenv", "putenv"}:
                yield f"{node.lineno} reads the environment"

    allowed = ("backend/settings.py", "backend/adapters/sandbox/probe.py")  # The probe looks for what leaked into it.
    assert [found for found in offences(rule, *CODE) if not found.startswith(allowed)] == []


def test_operations_never_commit_roll_back_or_open_a_session() -> None:
    def rule(name: str, module: ast.Module) -> Finding:
        for node in ast.walk(module):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                words = {"commit", "rollback", "begin"}
                if node.func.attr in words and getattr(node.func.value, "id", "") == "session":
                    yield f"{node.lineno} calls session.{node.func.attr}"
            if isinstance(node, ast.Name) and node.id in {"async_sessionmaker", "create_async_engine"}:
                yield f"{node.lineno} opens sessions"

    assert offences(rule, "backend/operations") == []


def test_everything_is_caught_only_where_work_is_driven() -> None:
    def rule(name: str, module: ast.Module) -> Finding:
        for node in ast.walk(module):
            if isinstance(node, ast.ExceptHandler) and name not in CATCH_ALL:
                caught = "everything" if node.type is None else ast.unparse(node.type)
                if caught in {"everything", "Exception", "BaseException"} and not reraises(node):
                    yield f"{node.lineno} catches {caught}"

    assert offences(rule, *CODE) == []


def reraises(handler: ast.ExceptHandler) -> bool:
    """Cleaning up and passing the error on is not swallowing it."""
    return isinstance(handler.body[-1], ast.Raise) and handler.body[-1].exc is None


def test_importing_a_module_makes_no_settings_and_no_connections() -> None:
    def rule(name: str, module: ast.Module) -> Finding:
        for statement in module.body:
            is_main = isinstance(statement, ast.If) and "__main__" in ast.unparse(statement.test)
            if is_main or isinstance(statement, FUNCTION | ast.ClassDef):
                continue
            for node in ast.walk(statement):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in {
                    "Settings",
                    "connect",
                    "create_async_engine",
                }:
                    yield f"{node.lineno} calls {ast.unparse(node.func)} when it is imported"

    assert offences(rule, *CODE) == []


def test_files_stay_short() -> None:
    def rule(name: str, module: ast.Module) -> Finding:
        length = len((ROOT / name).read_text(encoding="utf-8").splitlines())
        if length > (TABLE_LINES if name.startswith(TABLE_FILES) else FILE_LINES):
            yield f" {length} lines"

    assert offences(rule, *CODE, "migrations", "tests", "benchmarks") == []


def test_functions_stay_short() -> None:
    """What is done counts; the signature and the docstring may be as long as they need."""

    def rule(name: str, module: ast.Module) -> Finding:
        for node in ast.walk(module):
            if isinstance(node, FUNCTION):
                body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
                length = (node.end_lineno or node.lineno) - body[0].lineno + 1
                if length > FUNCTION_LINES:
                    yield f"{node.lineno} {node.name} has {length} lines"

    assert offences(rule, *CODE) == []


def test_names_of_files_and_classes_say_something() -> None:
    def rule(name: str, module: ast.Module) -> Finding:
        if EMPTY_WORDS & set(Path(name).stem.split("_")):
            yield " is a name that says nothing"
        for node in ast.walk(module):
            if isinstance(node, ast.ClassDef):
                words = {word.lower() for word in re.findall(r"[A-Z][a-z0-9]*|[a-z0-9]+", node.name)}
                if EMPTY_WORDS & words:
                    yield f"{node.lineno} {node.name} is a name that says nothing"

    assert offences(rule, *CODE) == []


def test_every_module_says_what_is_in_it() -> None:
    def rule(name: str, module: ast.Module) -> Finding:
        if not ast.get_docstring(module):
            yield " has no docstring"

    assert offences(rule, *CODE, "migrations", "tests", "benchmarks") == []


def comments(name: str) -> Iterator[tuple[int, str]]:
    with (ROOT / name).open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string


def test_suppressions_carry_a_code_and_a_reason() -> None:
    suppression = re.compile(r"# *(noqa|type: *ignore|pragma)")
    good = re.compile(
        r"# (noqa: [A-Z]+\d+(, ?[A-Z]+\d+)*|type: ignore\[[a-z-]+(, ?[a-z-]+)*\]|pragma: no cover)[^\w]+\w"
    )
    wrong = [
        f"{name}:{line} {comment}"
        for name in files(*CODE, "migrations", "tests", "benchmarks")
        for line, comment in comments(name)
        if suppression.match(comment) and not good.match(comment)
    ]
    assert wrong == []


def test_nothing_is_left_to_be_done_later() -> None:
    later = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    wrong = [
        f"{name}:{line} {comment}"
        for name in files(*CODE, "migrations", "tests", "benchmarks")
        for line, comment in comments(name)
        if later.search(comment)
    ]
    assert wrong == []

    def rule(name: str, module: ast.Module) -> Finding:
        for node in ast.walk(module):
            if isinstance(node, ast.Raise) and node.exc and "NotImplemented" in ast.unparse(node.exc):
                yield f"{node.lineno} is not implemented"

    assert offences(rule, *CODE) == []


def test_tests_are_called_by_sentences_and_can_fail() -> None:
    def rule(name: str, module: ast.Module) -> Finding:
        judges = {node.name for node in ast.walk(module) if isinstance(node, FUNCTION) and can_fail(node, set())}
        for node in ast.walk(module):
            if isinstance(node, FUNCTION) and node.name.startswith("test_"):
                if len(node.name.split("_")) < 4:
                    yield f"{node.lineno} {node.name} is no sentence"
                if not can_fail(node, judges):
                    yield f"{node.lineno} {node.name} cannot fail"

    assert offences(rule, "tests") == []


def can_fail(function: ast.AST, judges: set[str]) -> bool:
    """It asserts, expects an error, or calls something that does."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert | ast.Raise):
            return True
        if isinstance(node, ast.Call):
            word = ast.unparse(node.func).split(".")[-1]
            if word in judges or re.search(r"^(raises|fail|assert_|check_|validate|timeout|wait_for)", word):
                return True
    return False
