"""Hold the rows that were there against the checks of revision 0008, while everybody goes on working."""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Look through budgets and runs, under locks that let others read and write."""
    op.execute("ALTER TABLE budgets VALIDATE CONSTRAINT ck_budgets_seconds")
    op.execute("ALTER TABLE project_runs VALIDATE CONSTRAINT ck_project_runs_granted")


def downgrade() -> None:
    """Leave the rows as they are: they were looked through, and that is all."""
