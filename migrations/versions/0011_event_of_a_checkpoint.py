"""Checkpoints say which event was the last when they were written: several may come with one transaction now."""

# fmt: off

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; of checkpoints that have a transaction of their own, its events tell."""
    op.add_column("checkpoints", sa.Column("event_seq", sa.BigInteger(), nullable=True, comment="The run's last event when it was written; null: the events of its transaction tell"))


def downgrade() -> None:
    """Forget it; a fork from one of several checkpoints of a transaction then sees the rows of the last."""
    op.drop_column("checkpoints", "event_seq")
