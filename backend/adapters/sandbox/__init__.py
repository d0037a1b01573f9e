"""Nothing a model wrote runs outside the sandbox: a ladder of confinements, each proved by a self-test.

The launcher is imported from here by a bare interpreter, so `Sandbox` itself is imported only when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backend.adapters.sandbox.sandbox import Sandbox

__all__ = ["Sandbox"]


def __getattr__(name: str) -> Any:
    if name == "Sandbox":
        from backend.adapters.sandbox.sandbox import Sandbox

        return Sandbox
    raise AttributeError(name)
