"""The check of the ledger looks at limits of projects and months too."""

from __future__ import annotations

import re
from pathlib import Path

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

SQL = Path(__file__).parents[1] / "sql"
COMMENTS = {
    "run_id": ("Id of the run; empty: a project or a month", "Id of the run"),
    "total_of": ("run, the role whose cap it is, a project or a month", "run, or the role whose cap it is"),
}


def upgrade() -> None:
    """Compare the sums of projects and months with what their budgets have booked."""
    op.execute((SQL / "0006_ledger_check.sql").read_text("utf-8"))
    _comment(0)


def downgrade() -> None:
    """Compare runs and roles only."""
    text = (SQL / "0001_views.sql").read_text("utf-8")
    found = re.search(r"^CREATE VIEW v_ledger_check\b.*?;$", text, re.M | re.S)
    assert found is not None
    op.execute(found[0].replace("CREATE VIEW", "CREATE OR REPLACE VIEW"))
    _comment(1)


def _comment(which: int) -> None:
    for column, said in COMMENTS.items():
        op.execute(f"COMMENT ON COLUMN v_ledger_check.{column} IS '{said[which]}'")
