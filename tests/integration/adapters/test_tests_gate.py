"""The tests gate: what is green, what is not, and the ways to fake a green suite."""

# ruff: noqa: E501  (the fakes are whole programs on a line)

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import pytest

from backend.adapters.checks.program import ProgramChecks
from backend.adapters.sandbox import Sandbox
from backend.adapters.workspace import GitWorkspace
from backend.domain.config import ChecksConfig, RunConfig, SandboxConfig, WorkspaceConfig
from backend.domain.ports import TestReport
from backend.domain.role import Role
from backend.errors import Invalid

GOOD = {
    "shop/__init__.py": "",
    "shop/cart.py": "def total(prices):\n    return sum(prices)\n\n\ndef unused():\n    return 1\n",
    "tests/test_cart.py": (
        "import pytest\nfrom shop.cart import total\n\n\n@pytest.mark.parametrize('n', [1, 2])\n"
        "def test_total(n):\n    assert total([n, 2]) == n + 2\n\n\n"
        "class TestEmpty:\n    def test_zero(self):\n        assert total([]) == 0\n"
    ),
}
BROKEN = GOOD | {"shop/cart.py": "def total(prices):\n    return 7\n"}
RUN = RunConfig(sandbox=SandboxConfig(seconds=30))


class Bench:
    """A project's repository and the gate over it."""

    def __init__(self, home: Path, sandbox: Sandbox, config: RunConfig = RUN) -> None:
        self.workspace = GitWorkspace(home, uuid4(), uuid4())
        self.checks = ProgramChecks(self.workspace, sandbox, config)

    async def commit(self, files: Mapping[str, str]) -> str:
        tree = await self.workspace.checkout("dev", await self.workspace.prepare(WorkspaceConfig()))
        for path, text in files.items():
            target = Path(tree.path) / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        return await self.workspace.commit(tree, author=Role.DEVELOPER, message="x", trailers={})

    async def judge(self, files: Mapping[str, str], config: ChecksConfig | None = None) -> TestReport:
        return await self.checks.test(await self.commit(files), config or ChecksConfig(), accepted_tests={})


@pytest.fixture
async def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, await Sandbox.detect(SandboxConfig(), commands=4))


async def test_a_good_suite_is_green_and_measured(bench: Bench) -> None:
    report = await bench.judge(GOOD)
    assert report.reasons == ()
    assert report.green
    assert {case.id: case.outcome for case in report.cases} == {
        "tests/test_cart.py::TestEmpty::test_zero": "passed",
        "tests/test_cart.py::test_total[1]": "passed",
        "tests/test_cart.py::test_total[2]": "passed",
    }
    assert report.exit_code == 0
    assert report.coverage == 75.0
    assert not any(path.name.startswith("check-") for path in bench.workspace.trees.iterdir())


async def test_a_failing_suite_is_not_green_and_says_which(bench: Bench) -> None:
    report = await bench.judge(BROKEN)
    assert (report.green, report.exit_code) == (False, 1)
    assert "3 of 3 tests did not pass" in report.reasons[0]
    assert "assert 7 == 0" in report.cases[0].message


async def test_chosen_tests_run_alone(bench: Bench) -> None:
    commit = await bench.commit(GOOD)
    only = ["tests/test_cart.py::TestEmpty::test_zero"]
    report = await bench.checks.test(commit, ChecksConfig(), accepted_tests={}, only=only)
    assert (report.green, [case.id for case in report.cases]) == (True, only)
    absent = await bench.checks.test(commit, ChecksConfig(), accepted_tests={}, only=["tests/test_cart.py::absent"])
    assert not absent.green
    with pytest.raises(Invalid):
        await bench.checks.test(commit, ChecksConfig(), accepted_tests={}, only=["--co"])


async def test_a_coverage_floor_is_kept_without_pragmas(bench: Bench) -> None:
    files = GOOD | {"shop/cart.py": GOOD["shop/cart.py"].replace("def unused():", "def unused():  # pragma: no cover")}
    report = await bench.judge(files, ChecksConfig(coverage_floor=80))
    assert report.reasons == ("The coverage is 75 %, and at least 80 % is asked for.",)
    assert (await bench.judge(GOOD, ChecksConfig(coverage_floor=75))).green


async def test_accepted_tests_run_from_their_pristine_copy(bench: Bench) -> None:
    accepted = await bench.commit(GOOD)
    weakened = GOOD["tests/test_cart.py"].replace("assert total([]) == 0", "assert True")
    cheat = await bench.commit(BROKEN | {"tests/test_cart.py": weakened})
    deleted = await bench.commit({path: text for path, text in BROKEN.items() if not path.startswith("tests")})
    for commit in (cheat, deleted):
        report = await bench.checks.test(commit, ChecksConfig(), accepted_tests={"tests/test_cart.py": accepted})
        assert report.tampered == ("tests/test_cart.py",)
        assert not report.green
        assert len(report.cases) == 3
    honest = await bench.checks.test(accepted, ChecksConfig(), accepted_tests={"tests/test_cart.py": accepted})
    assert (honest.green, honest.tampered) == (True, ())


async def test_a_suite_that_hangs_is_killed_and_named(tmp_path: Path) -> None:
    config = RunConfig(sandbox=SandboxConfig(seconds=20))
    bench = Bench(tmp_path, await Sandbox.detect(SandboxConfig()), config)
    report = await bench.judge(
        GOOD | {"tests/test_slow.py": "import time\n\n\ndef test_slow():\n    time.sleep(600)\n"}
    )
    assert not report.green
    assert report.reasons[0] == "The tests did not end within 20 s while tests/test_slow.py::test_slow ran."


async def test_src_layouts_fixtures_and_unittest_work(bench: Bench) -> None:
    files = {
        "src/shop/__init__.py": "VALUE = 1\n",
        "tests/conftest.py": "import pytest\n\n\n@pytest.fixture\ndef one():\n    return 1\n",
        "tests/test_a.py": "from shop import VALUE\n\n\ndef test_a(one):\n    assert one == VALUE\n",
        "tests/unit/test_b.py": (
            "import unittest\n\n\nclass ShopCase(unittest.TestCase):\n    def test_b(self):\n        self.assertTrue(1)\n"
        ),
    }
    report = await bench.judge(files)
    assert report.reasons == ()
    assert len(report.cases) == 2


async def test_a_project_may_use_the_names_of_the_company(bench: Bench) -> None:
    files = {
        "backend/__init__.py": "X = 1\n",
        "tests/test_x.py": "from backend import X\n\n\ndef test_x():\n    assert X == 1\n",
    }
    assert (await bench.judge(files)).reasons == ()


async def test_a_suite_that_prints_without_end_is_killed(bench: Bench) -> None:
    report = await bench.judge(GOOD | {"tests/conftest.py": "import os\nwhile True:\n    os.write(2, b'x' * 65536)\n"})
    # Pytest keeps what a test prints in a file, so that the disk is full first.
    assert not report.green
    assert report.reasons[0] in {f"The tests were killed at the limit of {what}." for what in ("disk", "output")}
    assert len(report.output) <= 20_000


CONFTEST = "tests/conftest.py"
FAKES: dict[str, dict[str, str]] = {
    "exit in conftest": {CONFTEST: "import os\nos._exit(0)\n"},
    "exit in a test": {"tests/test_aaa.py": "import os\n\n\ndef test_a():\n    os._exit(0)\n"},
    "sys.exit at import": {"tests/test_aaa.py": "import sys\nsys.exit(0)\n"},
    "pytest.exit": {"tests/test_aaa.py": "import pytest\n\n\ndef test_a():\n    pytest.exit('done', returncode=0)\n"},
    "exit at the end": {CONFTEST: "import atexit, os\natexit.register(lambda: os._exit(0))\n"},
    "no tests": {"tests/test_cart.py": "X = 1\n"},
    "skip all": {"tests/test_cart.py": "import pytest\npytestmark = pytest.mark.skip\n" + GOOD["tests/test_cart.py"]},
    "xfail all": {"tests/test_cart.py": "import pytest\npytestmark = pytest.mark.xfail\n" + GOOD["tests/test_cart.py"]},
    "skip in conftest": {
        CONFTEST: "import pytest\n\n\n@pytest.fixture(autouse=True)\ndef skip():\n    pytest.skip('no')\n"
    },
    "addopts": {"pytest.ini": "[pytest]\naddopts = --co\n"},
    "addopts -k": {"pyproject.toml": "[tool.pytest.ini_options]\naddopts = '-k nothing'\n"},
    "testpaths": {"tox.ini": "[pytest]\ntestpaths = shop\npython_files = none.py\n"},
    "hook that changes reports": {
        CONFTEST: (
            "import pytest\n\n\n@pytest.hookimpl(hookwrapper=True)\ndef pytest_runtest_makereport(item, call):\n"
            "    out = yield\n    report = out.get_result()\n    report.outcome = 'passed'\n    report.longrepr = None\n"
        )
    },
    "hook that changes only the real reports": {
        CONFTEST: (
            "import pytest\n\n\n@pytest.hookimpl(hookwrapper=True)\ndef pytest_runtest_makereport(item, call):\n"
            "    out = yield\n    report = out.get_result()\n    if 'cart' in item.nodeid:\n"
            "        report.outcome = 'passed'\n        report.longrepr = None\n"
        )
    },
    "hook that runs nothing": {
        CONFTEST: "def pytest_pyfunc_call(pyfuncitem):\n    return 'cart' in pyfuncitem.nodeid or None\n"
    },
    "hook that deselects": {CONFTEST: "def pytest_collection_modifyitems(items):\n    items[:] = []\n"},
    "ignored files": {CONFTEST: "collect_ignore_glob = ['test_cart*']\n"},
    "a patched runner": {
        CONFTEST: "import _pytest.runner as r\nr.check_interactive_exception = lambda *a: False\nr.call_and_report = lambda *a, **k: None\n"
    },
    "a patched report": {
        CONFTEST: (
            "from _pytest.reports import TestReport as T\nmade = T.from_item_and_call.__func__\n\n\n"
            "def green(cls, item, call):\n    if 'cart' in item.nodeid:\n        call.excinfo = None\n"
            "    return made(cls, item, call)\n\n\nT.from_item_and_call = classmethod(green)\n"
        )
    },
    "a patched exit": {CONFTEST: "import sys\nsys.exit = lambda *a: __import__('os')._exit(0)\n"},
    "a forged report": {
        "tests/test_aaa.py": (
            "import os, sys\n\n\ndef test_a():\n    out = [a for a in sys.argv]\n"
            '    body = \'<testsuites><testsuite><testcase classname="tests.test_cart" name="test_total[1]"/></testsuite></testsuites>\'\n'
            "    for root in ('.', '../out'):\n"
            "        try: open(root + '/run.xml', 'w').write(body)\n        except OSError: pass\n    os._exit(0)\n"
        )
    },
    "another pytest": {
        "pytest.py": "def main(*a, **k):\n    return 0\n",
        "pytest/__init__.py": "def main(*a, **k): return 0\n",
    },
    "a site module": {"sitecustomize.py": "import os\nos._exit(0)\n", "usercustomize.py": "import os\nos._exit(0)\n"},
    "a package that exits": {"tests/__init__.py": "import os\nos._exit(0)\n"},
    "a test that is deleted": {"tests/test_cart.py": GOOD["tests/test_cart.py"] + "\n\ndel test_total\n"},
    "a class that is hidden": {
        "tests/test_cart.py": GOOD["tests/test_cart.py"].replace(
            "class TestEmpty:", "class TestEmpty:\n    __test__ = False\n"
        )
    },
    "a plug-in of the tree": {
        CONFTEST: "pytest_plugins = ['shop.plug']\n",
        "shop/plug.py": "def pytest_runtest_call(item):\n    item.obj = lambda: None\n",
    },
    "an exception that is no failure": {
        "shop/cart.py": "import pytest\n\n\ndef total(prices):\n    pytest.skip('later')\n"
    },
    "a daemon thread that exits": {
        CONFTEST: "import os, threading, time\nthreading.Thread(target=lambda: (time.sleep(0.1), os._exit(0)), daemon=True).start()\n"
    },
}


@pytest.mark.parametrize("name", FAKES)
async def test_a_suite_is_not_green_because_of(name: str, bench: Bench) -> None:
    files = BROKEN | FAKES[name]
    report = await bench.judge(
        {path: text for path, text in files.items() if path != "pytest.py" or "pytest/__init__.py" not in files}
    )
    assert not report.green, report
    assert report.reasons


async def test_an_empty_project_is_not_green(bench: Bench) -> None:
    for files in ({}, {"a.txt": "a"}, {"a.py": "A = 1\n"}):
        report = await bench.judge(files)
        assert (report.green, len(report.reasons)) == (False, 1)


NODE = {
    "package.json": '{"scripts": {"test": "node --test"}}',
    "add.mjs": "export const add = (a, b) => a + b;\n",
    "add.test.mjs": "import test from 'node:test';\nimport assert from 'node:assert';\nimport { add } from './add.mjs';\n"
    "test('adds', () => assert.strictEqual(add(1, 2), 3));\n",
}


async def test_node_projects_run_under_their_own_runner(bench: Bench) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    report = await bench.judge(NODE)
    assert report.reasons == ()
    assert [case.outcome for case in report.cases] == ["passed"]
    broken = await bench.judge(NODE | {"add.mjs": "export const add = (a, b) => a;\n"})
    assert not broken.green
    exits = await bench.judge(NODE | {"add.mjs": "process.exit(0);\nexport const add = 1;\n"})
    assert not exits.green


async def test_another_command_must_prove_which_tests_ran(bench: Bench) -> None:
    silent = await bench.judge(GOOD, ChecksConfig(test_command="true"))
    assert not silent.green
    assert "JUNIT_XML" in silent.reasons[0]
    line = 'printf \'<testsuite><testcase classname="a" name="b"/></testsuite>\' > $JUNIT_XML'
    assert (await bench.judge(GOOD, ChecksConfig(test_command=line))).green
    assert not (await bench.judge(GOOD, ChecksConfig(test_command=line + "; exit 2"))).green
