"""Limits in seconds for a role, a project and a tenant's month."""

# fmt: off

from __future__ import annotations

import re
from pathlib import Path

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

SQL = Path(__file__).parents[1] / "sql"


def _seconds(name: str, comment: str) -> sa.Column[object]:
    return sa.Column(name, sa.Numeric(14, 6), server_default="0", nullable=False, comment=comment)


def upgrade() -> None:
    """Add columns with defaults; a worker of the release before books no seconds, and ends a grant as any other does.

    The rows that are there are held against the checks by the next revision, which keeps nobody waiting.
    """
    op.add_column("budgets", sa.Column("limit_seconds", sa.Integer(), nullable=True, comment="Most seconds of calls (role) or of work (project, month); null: no limit"))
    op.add_column("budgets", _seconds("spent_seconds", "Seconds of calls or of work"))
    op.add_column("budgets", _seconds("reserved_seconds", "Held for calls in flight, or granted to runs that work"))
    op.add_column("budgets", _seconds("told_seconds", "Seconds of work up to which warnings were told"))
    op.create_check_constraint(op.f("ck_budgets_seconds"), "budgets", "limit_seconds > 0 AND spent_seconds >= 0 AND reserved_seconds >= 0 AND reserved_seconds <= limit_seconds", postgresql_not_valid=True)
    op.add_column("tenants", sa.Column("monthly_budget_seconds", sa.Integer(), nullable=True, comment="Most seconds that all runs work in a calendar month (UTC)"))
    op.add_column("model_calls", _seconds("reserved_seconds", "Longest that was held, where its role has a limit in seconds"))
    op.add_column("model_calls", _seconds("seconds", "From sending to its end, as its role is charged; none for a played reply"))
    op.add_column("project_runs", sa.Column("granted_at", sa.DateTime(timezone=True), nullable=True, comment="Since when it works on its grant; null: no limit in seconds that it shares"))
    op.add_column("project_runs", sa.Column("granted_until", sa.DateTime(timezone=True), nullable=True, comment="Until when it may work on it"))
    op.add_column("project_runs", sa.Column("granted_budgets", ARRAY(sa.Uuid()), nullable=True, comment="Budgets that the grant is held in"))
    op.create_check_constraint(op.f("ck_project_runs_granted"), "project_runs", "(granted_at IS NULL) = (granted_until IS NULL) AND (granted_at IS NULL) = (granted_budgets IS NULL) AND granted_until >= granted_at", postgresql_not_valid=True)
    for statement in re.split(r"\n\n(?=[A-Z])", (SQL / "0008_seconds.sql").read_text("utf-8").strip()):
        op.execute(statement)


def downgrade() -> None:
    """Forget limits in seconds, but for the run's own."""
    op.execute("DROP TRIGGER book_grant ON project_runs")
    op.execute("DROP FUNCTION book_grant()")
    op.execute("DROP TRIGGER guard_reservation ON budgets")
    op.execute(_found("0001_guards.sql", r"^CREATE TRIGGER guard_reservation [^\n]* ON budgets\b.*?;$"))
    op.execute(_found("0001_views.sql", r"^CREATE VIEW v_budget_burn\b.*?;$").replace("CREATE VIEW", "CREATE OR REPLACE VIEW"))
    op.execute((SQL / "0006_ledger_check.sql").read_text("utf-8"))
    op.drop_constraint(op.f("ck_project_runs_granted"), "project_runs")
    for column in ("granted_at", "granted_until", "granted_budgets"):
        op.drop_column("project_runs", column)
    op.drop_column("model_calls", "seconds")
    op.drop_column("model_calls", "reserved_seconds")
    op.drop_column("tenants", "monthly_budget_seconds")
    op.drop_constraint(op.f("ck_budgets_seconds"), "budgets")
    for column in ("limit_seconds", "spent_seconds", "reserved_seconds", "told_seconds"):
        op.drop_column("budgets", column)


def _found(file: str, pattern: str) -> str:
    found = re.search(pattern, (SQL / file).read_text("utf-8"), re.M | re.S)
    assert found is not None
    return found[0]
