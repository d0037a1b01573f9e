"""A month's limit in tokens stands for the months that follow, as those in USD and seconds do."""

# fmt: off

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column, and let the limit that stands for this month stand; a worker of the release before opens months without it."""
    op.add_column("tenants", sa.Column("monthly_budget_tokens", sa.BigInteger(), nullable=True, comment="Most tokens of all runs in a calendar month (UTC)"))
    op.execute(
        "UPDATE tenants t SET monthly_budget_tokens = b.limit_tokens FROM budgets b WHERE b.scope = 'tenant_month' AND b.owner_id = t.id"
        " AND b.name = to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM') AND b.limit_tokens IS NOT NULL"
    )


def downgrade() -> None:
    """Forget what stands; the months that were opened keep their limits."""
    op.drop_column("tenants", "monthly_budget_tokens")
