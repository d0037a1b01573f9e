"""A question that nobody answered may be asked again, when its run is retried."""

# fmt: off

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# Replacing a trigger keeps writers out for a moment and nobody who reads.
GUARD = """
CREATE OR REPLACE TRIGGER guard_answer BEFORE UPDATE ON questions FOR EACH ROW
WHEN (OLD.status <> 'OPEN' AND (OLD.status, OLD.answer, OLD.answered_by, OLD.answered_at)
      IS DISTINCT FROM (NEW.status, NEW.answer, NEW.answered_by, NEW.answered_at){unless})
EXECUTE FUNCTION refuse('A question that is closed keeps its answer.')
"""
UNANSWERED = """
      AND NOT (OLD.status IN ('WITHDRAWN', 'EXPIRED') AND OLD.answer IS NULL AND NEW.status = 'OPEN' AND NEW.answer IS NULL)"""


def upgrade() -> None:
    """Let a question be open again that was closed without an answer."""
    op.execute(GUARD.format(unless=UNANSWERED))


def downgrade() -> None:
    """Whatever is closed stays closed."""
    op.execute(GUARD.format(unless=""))
