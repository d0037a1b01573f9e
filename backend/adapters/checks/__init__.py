"""Programs that decide: the tests gate, the scanners and the linters, each failing closed.

`ProgramChecks` is imported only when it is asked for: the scanners, which it uses, work in the scratch copies of here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backend.adapters.checks.program import ProgramChecks

__all__ = ["ProgramChecks"]


def __getattr__(name: str) -> Any:
    if name == "ProgramChecks":
        from backend.adapters.checks.program import ProgramChecks

        return ProgramChecks
    raise AttributeError(name)
