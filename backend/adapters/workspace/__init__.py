"""Git as the truth about files: `GitWorkspace` implements `backend.domain.ports.Workspace` with the git program."""

from __future__ import annotations

from backend.adapters.workspace.changes import Blame
from backend.adapters.workspace.repository import GitWorkspace

__all__ = ["Blame", "GitWorkspace"]
