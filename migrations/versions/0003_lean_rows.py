"""Rows of a run carry their tenant and project without foreign keys of their own: the run has both, and checks them.

Each commit of a node writes about ten such rows; the checks and the single-column indexes cost more than the rows.
"""

# fmt: off

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TABLES = ("tasks", "task_comments", "artifacts", "findings", "questions", "model_calls", "events")

REMOVE = """
CREATE FUNCTION remove_events() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM events USING removed WHERE events.project_id = removed.id AND events.run_id IS NULL;
    RETURN NULL;
END $$

CREATE TRIGGER remove_events AFTER DELETE ON projects REFERENCING OLD TABLE AS removed FOR EACH STATEMENT
EXECUTE FUNCTION remove_events()
"""


def upgrade() -> None:
    """Drop what every commit pays for; events of projects without a run go with their project by a trigger."""
    op.execute("CREATE INDEX idx_event_project ON events (project_id) WHERE run_id IS NULL")
    for statement in REMOVE.strip().split("\n\n"):
        op.execute(statement)
    for table in TABLES:
        op.drop_constraint(f"fk_{table}_tenant_id", table)
        op.execute(f"DROP INDEX IF EXISTS idx_{table}_tenant_id")
    op.drop_constraint("fk_events_project_id", "events")
    op.drop_index("idx_events_project_id", "events")


def downgrade() -> None:
    """Put them back."""
    op.create_index("idx_events_project_id", "events", ["project_id"])
    op.create_foreign_key("fk_events_project_id", "events", "projects", ["project_id"], ["id"], ondelete="CASCADE")
    for table in TABLES:
        if table != "events":
            op.create_index(f"idx_{table}_tenant_id", table, [sa.text("tenant_id")])
        op.create_foreign_key(f"fk_{table}_tenant_id", table, "tenants", ["tenant_id"], ["id"])
    op.execute("DROP TRIGGER remove_events ON projects")
    op.execute("DROP FUNCTION remove_events()")
    op.execute("DROP INDEX idx_event_project")
