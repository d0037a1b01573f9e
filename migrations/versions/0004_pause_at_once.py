"""A pause may cut a node short."""

# fmt: off

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; a worker of the release before does not read it and holds before its next call."""
    op.add_column("project_runs", sa.Column("pause_at_once", sa.Boolean(), server_default=sa.text("false"), nullable=False, comment="Whether the pause that was asked for last cuts the node short"))


def downgrade() -> None:
    """Drop the column."""
    op.drop_column("project_runs", "pause_at_once")
