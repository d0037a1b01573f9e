"""The screen: colours and width where there is a terminal, plain lines of a fixed width where there is none."""

from __future__ import annotations

import sys

from rich.console import Console

PLAIN_WIDTH = 160


def screen(*, errors: bool = False, quiet: bool = False) -> Console:
    """A console for standard output or errors; long lines are not folded."""
    stream = sys.stderr if errors else sys.stdout
    width = None if stream.isatty() else PLAIN_WIDTH
    return Console(file=stream, highlight=False, soft_wrap=True, width=width, quiet=quiet)
