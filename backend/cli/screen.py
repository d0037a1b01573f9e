"""The screen: colours and width where there is a terminal, plain lines of a fixed width where there is none."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from rich.console import Console

from backend.settings import Settings

PLAIN_WIDTH = 160


def screen(*, errors: bool = False, quiet: bool = False) -> Console:
    """A console for standard output or errors; long lines are not folded."""
    stream = sys.stderr if errors else sys.stdout
    width = None if stream.isatty() else PLAIN_WIDTH
    return Console(file=stream, highlight=False, soft_wrap=True, width=width, quiet=quiet)


def typed(settings: Settings) -> str:
    """The command as a person here would type it: `company`, or its path where it is not on the PATH."""
    program = Path(sys.argv[0])
    name = "company" if shutil.which("company") else min(os.path.relpath(program), str(program.absolute()), key=len)
    return name if settings.home.absolute() == Path(".company").absolute() else f"COMPANY_HOME={settings.home} {name}"
