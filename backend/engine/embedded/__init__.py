"""Postgres, broker and workers for one machine: the real stack, without an installation of its own.

with Stack.start(settings) as stack: ...      holds the state directory and runs the servers
attach(settings)                              the addresses of the servers named in the settings or running already
with Children(commands, environment, logs): … runs api and worker as watched child processes
"""

from backend.engine.embedded.children import Children, wait_for_signal
from backend.engine.embedded.stack import Stack, api_of, attach, is_up
from backend.engine.embedded.state import Addresses

__all__ = ["Addresses", "Children", "Stack", "api_of", "attach", "is_up", "wait_for_signal"]
