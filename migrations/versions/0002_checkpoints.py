"""The checkpointer's tables."""

# fmt: off

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

COMPRESSED = (("checkpoints", "state"), ("checkpoints", "channel_values"), ("checkpoint_writes", "value"))

REMOVE = """
CREATE FUNCTION remove_checkpoints() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM checkpoints USING removed WHERE checkpoints.thread_id = removed.id;
    DELETE FROM checkpoint_writes USING removed WHERE checkpoint_writes.thread_id = removed.id;
    RETURN NULL;
END $$;

CREATE TRIGGER remove_checkpoints AFTER DELETE ON project_runs REFERENCING OLD TABLE AS removed FOR EACH STATEMENT
EXECUTE FUNCTION remove_checkpoints();
"""


def upgrade() -> None:
    """Make the tables; what they hold stays in its row, compressed."""
    op.create_table(
        "checkpoints",
        sa.Column("thread_id", sa.Uuid(), nullable=False, comment="The run"),
        sa.Column("namespace", sa.Text(), nullable=False, comment="Empty for the graph itself, else the subgraph's path"),
        sa.Column("number", sa.Integer(), nullable=False, comment="Counts from 1 within the namespace: the order they were written in"),
        sa.Column("checkpoint_id", sa.Uuid(), nullable=False, comment="LangGraph's id of the checkpoint"),
        sa.Column("parent_id", sa.Uuid(), nullable=True, comment="Checkpoint it follows; null: the first"),
        sa.Column("metadata", JSONB(), nullable=False, comment="Source, step and parents"),
        sa.Column("state", sa.Text(), nullable=False, comment="JSON: channel versions, versions seen by nodes, and the number of the row that holds each value"),
        sa.Column("channel_values", sa.Text(), nullable=False, comment="JSON: values of the channels that changed"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False, comment="When (UTC)"),
        sa.CheckConstraint("number >= 1", name=op.f("ck_checkpoints_number")),
        sa.PrimaryKeyConstraint("thread_id", "namespace", "number", name=op.f("pk_checkpoints")),
        comment="What a run resumes from; one row a superstep, written in the transaction of its effects",
    )
    op.create_table(
        "checkpoint_writes",
        sa.Column("thread_id", sa.Uuid(), nullable=False, comment="The run"),
        sa.Column("namespace", sa.Text(), nullable=False, comment="Namespace of the checkpoint"),
        sa.Column("checkpoint_id", sa.Uuid(), nullable=False, comment="Checkpoint that the superstep started from"),
        sa.Column("task_id", sa.Uuid(), nullable=False, comment="LangGraph's id of the task"),
        sa.Column("idx", sa.Integer(), nullable=False, comment="Place of the write; negative for errors, interrupts and answers"),
        sa.Column("task_path", sa.Text(), server_default="", nullable=False, comment="Place of the task in the superstep"),
        sa.Column("channel", sa.Text(), nullable=False, comment="Channel that was written"),
        sa.Column("value", sa.Text(), nullable=False, comment="JSON"),
        sa.PrimaryKeyConstraint("thread_id", "namespace", "checkpoint_id", "task_id", "idx", name=op.f("pk_checkpoint_writes")),
        comment="Results of tasks whose superstep is not finished",
    )
    known = "EXISTS (SELECT 1 FROM pg_settings WHERE name = 'default_toast_compression' AND 'lz4' = ANY (enumvals))"
    changes = " ".join(f"ALTER TABLE {table} ALTER COLUMN {column} SET COMPRESSION lz4;" for table, column in COMPRESSED)
    op.execute(f"DO $$ BEGIN IF {known} THEN {changes} END IF; END $$")
    for table, column in (*COMPRESSED, ("checkpoints", "metadata")):
        op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET STORAGE MAIN")
    for statement in REMOVE.strip().split("\n\n"):
        op.execute(statement)


def downgrade() -> None:
    """Drop the tables."""
    op.execute("DROP TRIGGER remove_checkpoints ON project_runs")
    op.execute("DROP FUNCTION remove_checkpoints()")
    op.drop_table("checkpoint_writes")
    op.drop_table("checkpoints")
