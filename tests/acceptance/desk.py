"""The command line by fork: it is imported once, so that a test may type as many commands as it needs.

A command still is a process of its own, with its own environment, directory, streams and exit code. That
`company` starts from nothing is shown by the tests that start it as a program (`up`, `demo`, `watch`).
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]


class Desk:
    """A process that becomes the command line as often as it is asked to, one command after the other."""

    def __init__(self) -> None:
        environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self._parent = subprocess.Popen(
            [sys.executable, "-m", "tests.acceptance.desk"],
            cwd=ROOT,
            env=environment | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )

    def run(
        self,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        cwd: Path,
        stdin: bytes | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Type a command and wait for its end."""
        with tempfile.TemporaryDirectory() as folder:
            streams = [str(Path(folder, name)) for name in ("in", "out", "err")]
            Path(streams[0]).write_bytes(stdin or b"")
            asked = {
                "arguments": list(arguments),
                "environment": dict(environment),
                "cwd": str(cwd),
                "streams": streams,
            }
            assert self._parent.stdin is not None
            self._parent.stdin.write(json.dumps(asked).encode() + b"\n")
            code = self._code(int(self._line()))
            said = [Path(stream).read_text() for stream in streams[1:]]
        return subprocess.CompletedProcess(list(arguments), code, *said)

    def close(self) -> None:
        """End the process and what it became."""
        os.killpg(self._parent.pid, signal.SIGKILL)
        self._parent.wait()
        for stream in (self._parent.stdin, self._parent.stdout):
            if stream is not None:
                stream.close()

    def _code(self, pid: int) -> int:
        try:
            return int(self._line())
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            self._line()
            raise

    def _line(self) -> bytes:
        stream, line = self._parent.stdout, b""
        assert stream is not None
        while not line.endswith(b"\n"):
            if not select.select([stream], [], [], PATIENCE)[0]:
                raise TimeoutError(f"The command did not end in {PATIENCE} s.")
            got = os.read(stream.fileno(), 1)
            assert got, "the desk has died"
            line += got
        return line


def _serve() -> None:
    import langchain_openai

    from backend.cli import compare, dead_letters, follow, host, look, start, steer
    from backend.worker import bell

    assert all((langchain_openai, compare, dead_letters, follow, host, look, start, steer, bell))
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(_become(json.loads(line)))
        os.write(1, f"{child}\n".encode())
        os.write(1, f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n".encode())


def _become(asked: dict[str, Any]) -> int:
    from backend.cli import main

    for number, name in enumerate(asked["streams"]):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT if number else os.O_RDONLY, 0o600), number)
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.path[:0] = [place for place in os.environ.get("PYTHONPATH", "").split(":") if place not in sys.path]
    os.chdir(asked["cwd"])
    sys.argv = ["company", *asked["arguments"]]
    try:
        main()
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    _serve()
