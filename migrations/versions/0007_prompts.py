"""Runs are pinned to the prompts that they began with."""

# fmt: off

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

SQL = Path(__file__).parents[1] / "sql"


def upgrade() -> None:
    """Add table, column and view; a worker of the release before neither reads nor writes them, and its runs stay unpinned."""
    op.create_table(
        "prompts",
        sa.Column("sha256", sa.Text(), nullable=False, comment="sha256 of the text, which is its name here"),
        sa.Column("name", sa.Text(), nullable=False, comment="Prompt that it was first kept for"),
        sa.Column("text", sa.Text(), nullable=False, comment="The prompt file, before any fact is put in"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False, comment="When the row was made (UTC)"),
        sa.CheckConstraint("sha256 = encode(sha256(convert_to(text, 'UTF8')), 'hex')", name=op.f("ck_prompts_content")),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_prompts")),
        comment="Texts of prompts by what they say; added by the worker that first needs them, never changed",
    )
    op.add_column("project_runs", sa.Column("prompts", JSONB(), nullable=True, comment="Prompts it is pinned to: sha256 by name; null: no release that pins them took it up yet"))
    # Out of the row, which each node writes again; hashes do not compress.
    op.execute("ALTER TABLE project_runs ALTER COLUMN prompts SET STORAGE EXTERNAL")
    for statement in (SQL / "0007_prompts.sql").read_text("utf-8").strip().split("\n\n"):
        op.execute(statement)


def downgrade() -> None:
    """Forget what runs are pinned to."""
    op.execute("DROP VIEW v_run_prompts")
    op.execute("DROP TRIGGER guard_prompts ON project_runs")
    op.drop_column("project_runs", "prompts")
    op.drop_table("prompts")
