"""The command line `company`. Commands import what they need when they run, so that help comes at once."""

from __future__ import annotations


def main() -> None:
    """The entry point: run a command; a condition becomes one sentence and an exit code, never a traceback."""
    from backend.cli.app import run

    run()
