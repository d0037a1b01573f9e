"""A worker that is asked to leave hears it, whatever its main thread is in the middle of."""

from __future__ import annotations

import subprocess
import sys
import textwrap

from tests.patience import PATIENCE

LOGS_WHILE_THE_SIGNAL_COMES = """
    import io, logging, os, signal, sys, time
    from backend.worker import app

    class Loop:
        def drain(self):
            os.write(1, b"drained")

    class Rude(io.RawIOBase):
        rude = True

        def writable(self):
            return True

        def write(self, data):
            if self.rude:
                self.rude = False
                signal.raise_signal(signal.SIGTERM)
            return len(data)

    app._leave_when_asked(Loop(), 0.1)
    sys.stderr = io.TextIOWrapper(io.BufferedWriter(Rude()), write_through=True)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    logging.info("a line of the log")
    time.sleep(60)
"""


def test_a_signal_that_comes_while_a_line_is_logged_is_heard() -> None:
    code = textwrap.dedent(LOGS_WHILE_THE_SIGNAL_COMES)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "drained", "")
