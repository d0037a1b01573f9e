"""The commit of a node: fence, checkpoint or pending writes, rows, events and totals, in one statement.

Everything after the fence and the guard happens only if the fence held and the guard's row is new, so that a statement
that is sent twice, or by a worker that lost its run, changes nothing.
"""

from backend.adapters.db.commit.group import Next, save_next
from backend.adapters.db.commit.single import save_checkpoint, save_rows, save_writes
from backend.adapters.db.commit.statement import CheckpointRow, Fence, PendingWrites, Statement

__all__ = [
    "CheckpointRow",
    "Fence",
    "Next",
    "PendingWrites",
    "Statement",
    "save_checkpoint",
    "save_next",
    "save_rows",
    "save_writes",
]
