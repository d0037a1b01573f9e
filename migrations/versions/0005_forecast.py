"""What a run will have spent when it is done: a function, and a column of the overview."""

from __future__ import annotations

import re
from pathlib import Path

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

SQL = Path(__file__).parents[1] / "sql"
COLUMN = "What it will have spent when it is done, as ranges, and how they are computed; empty: nothing can be said"


def upgrade() -> None:
    """Make the function, and show what it says at the end of the overview."""
    body, comment = (SQL / "0005_forecast.sql").read_text("utf-8").split("$$;\n")
    op.execute(f"{body}$$")
    op.execute(comment)
    made = _overview()[0].replace("CREATE VIEW", "CREATE OR REPLACE VIEW")
    head, tail = made.split("\nFROM project_runs run")
    active = "CASE WHEN run.ended_at IS NULL THEN run_forecast(run.id) END"
    op.execute(f"{head},\n    {active} AS forecast\nFROM project_runs run{tail}")
    op.execute(f"COMMENT ON COLUMN v_run_overview.forecast IS '{COLUMN}'")


def downgrade() -> None:
    """Show the overview as it was, and drop the function."""
    op.execute("DROP VIEW v_run_overview")
    for statement in _overview():
        op.execute(statement)
    op.execute("DROP FUNCTION run_forecast(uuid)")


def _overview() -> list[str]:
    """The statements that made the overview and its comments."""
    text = (SQL / "0001_views.sql").read_text("utf-8")
    return re.findall(r"^(?:CREATE VIEW|COMMENT ON VIEW|COMMENT ON COLUMN) v_run_overview\b.*?;$", text, re.M | re.S)
