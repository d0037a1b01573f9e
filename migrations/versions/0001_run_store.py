"""The run store: tables, what nobody may do to them, and views for people."""

# fmt: off
# A line a column reads like the table it makes; the formatter would need five.

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

INSTANT = sa.DateTime(timezone=True)
MONEY = sa.Numeric(14, 6)
DEFAULT_TENANT = "00000000-0000-7000-8000-000000000001"

TABLES = (
    "tenants", "budgets", "idempotency_keys", "project_templates", "projects", "project_runs", "dead_letters",
    "events", "model_calls", "tasks", "artifacts", "findings", "questions", "task_comments", "task_dependencies",
)

COMPRESSED = {
    "project_templates": ("config_patch",),
    "projects": ("brief", "config_patch"),
    "project_runs": ("brief", "config_snapshot", "final_report", "error"),
    "tasks": ("description", "acceptance_criteria"),
    "task_comments": ("body", "metrics", "rationale"),
    "findings": ("message",),
    "questions": ("text", "answer"),
    "model_calls": ("request", "response", "error"),
    "events": ("payload",),
    "dead_letters": ("error", "payload"),
    "idempotency_keys": ("body",),
}
"""Columns that can be big: LZ4 takes a quarter of the time of the default, where the server was built with it."""

IN_PLACE = (
    "status", "requested", "graph", "graph_version", "template_slug", "current_node", "lease_owner", "stop_reason",
    "parent_checkpoint_id", "idempotency_key", "correlation_id", "started_by",
)
"""Short texts of a run; out of its row, each would be written again with every node."""

VIEWS = (
    "v_stuck_runs", "v_ledger_check", "v_task_tree", "v_budget_burn", "v_cost_by_node_visit", "v_cost_by_role",
    "v_run_timeline", "v_run_overview",
)
FUNCTIONS = ("check_parent", "check_dependencies", "remove_events", "remove_budgets", "refuse_status", "refuse")


def upgrade() -> None:
    """Make everything and the default tenant."""
    for make in (
        _tenants, _budgets, _idempotency_keys, _project_templates, _projects, _project_runs, _dead_letters,
        _events, _model_calls, _tasks, _artifacts, _findings, _questions, _task_comments, _task_dependencies,
    ):
        make()
    _compress()
    _keep_in_place()
    _run("0001_guards.sql")
    _run("0001_views.sql")
    op.bulk_insert(sa.table("tenants", sa.column("id", sa.Uuid()), sa.column("name", sa.Text())), [{"id": UUID(DEFAULT_TENANT), "name": "default"}])


def downgrade() -> None:
    """Drop everything."""
    for view in VIEWS:
        op.execute(f"DROP VIEW {view}")
    op.drop_constraint("fk_projects_active_run_id", "projects")
    for table in reversed(TABLES):
        op.drop_table(table)
    for function in FUNCTIONS:
        op.execute(f"DROP FUNCTION {function}")


def _compress() -> None:
    """Ask for LZ4; a server that does not know it keeps its default."""
    changes = " ".join(
        f'ALTER TABLE {table} ALTER COLUMN "{column}" SET COMPRESSION lz4;'
        for table, columns in COMPRESSED.items() for column in columns
    )
    known = "EXISTS (SELECT 1 FROM pg_settings WHERE name = 'default_toast_compression' AND 'lz4' = ANY (enumvals))"
    op.execute(f"DO $$ BEGIN IF {known} THEN {changes} END IF; END $$")


def _keep_in_place() -> None:
    """Lay out the run's row, which changes at every node: its new version fits into its page, and only what is big and stays is elsewhere."""
    op.execute("ALTER TABLE project_runs SET (fillfactor = 50, toast_tuple_target = 256)")
    changes = ", ".join(f"ALTER COLUMN {column} SET STORAGE MAIN" for column in IN_PLACE)
    op.execute(f"ALTER TABLE project_runs {changes}")


def _run(name: str) -> None:
    """Run a file of statements; one ends where a line ends with `;` outside a `$$` body."""
    statement: list[str] = []
    for line in (Path(__file__).parents[1] / "sql" / name).read_text(encoding="utf-8").splitlines():
        statement.append(line)
        whole = "\n".join(statement)
        if line.endswith(";") and whole.count("$$") % 2 == 0:
            op.execute(whole)
            statement = []


def _row_id() -> sa.Column[sa.Uuid]:
    return sa.Column("id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False, comment="Time-ordered random id")


def _tenant() -> sa.Column[sa.Uuid]:
    return sa.Column("tenant_id", sa.Uuid(), server_default=sa.text(f"'{DEFAULT_TENANT}'"), nullable=False, comment="Owner of the row")


def _instant(name: str, comment: str) -> sa.Column[sa.DateTime]:
    return sa.Column(name, INSTANT, server_default=sa.text("clock_timestamp()"), nullable=False, comment=comment)


def _tenants() -> None:
    op.create_table("tenants",
        _row_id(),
        sa.Column("name", sa.Text(), nullable=False, comment="Shown name"),
        sa.Column("monthly_budget_usd", MONEY, nullable=True, comment="Limit of all runs in a calendar month (UTC)"),
        _instant("created_at", "When the row was made (UTC)"),
        sa.PrimaryKeyConstraint("id", name="pk_tenants"),
        sa.UniqueConstraint("name", name="uq_tenants_name"),
        comment="Owners of projects, templates and keys; every query is scoped by one"
    )


def _budgets() -> None:
    op.create_table("budgets",
        _row_id(),
        _tenant(),
        sa.Column("scope", sa.Text(), nullable=False, comment="run_role, project or tenant_month"),
        sa.Column("owner_id", sa.Uuid(), nullable=False, comment="Run, project or tenant"),
        sa.Column("name", sa.Text(), nullable=False, comment="Role, `all`, or the month as 2026-11"),
        sa.Column("limit_tokens", sa.BigInteger(), nullable=True, comment="Most tokens; null: no limit"),
        sa.Column("limit_usd", MONEY, nullable=True, comment="Most money; null: no limit"),
        sa.Column("spent_tokens", sa.BigInteger(), server_default="0", nullable=False, comment="Billed tokens"),
        sa.Column("spent_usd", MONEY, server_default="0", nullable=False, comment="Billed money"),
        sa.Column("reserved_tokens", sa.BigInteger(), server_default="0", nullable=False, comment="Held for calls in flight"),
        sa.Column("reserved_usd", MONEY, server_default="0", nullable=False, comment="Held for calls in flight"),
        _instant("created_at", "When the row was made (UTC)"),
        sa.CheckConstraint("scope IN ('run_role', 'project', 'tenant_month')", name=op.f("ck_budgets_scope")),
        sa.CheckConstraint("limit_tokens > 0 AND limit_usd > 0", name=op.f("ck_budgets_limits")),
        sa.CheckConstraint("reserved_tokens <= limit_tokens AND reserved_usd <= limit_usd", name=op.f("ck_budgets_reserved_ceiling")),
        sa.CheckConstraint("reserved_tokens >= 0 AND reserved_usd >= 0", name=op.f("ck_budgets_reserved_floor")),
        sa.CheckConstraint("spent_tokens >= 0 AND spent_usd >= 0", name=op.f("ck_budgets_spent_floor")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_budgets_tenant_id"),
        sa.PrimaryKeyConstraint("id", name="pk_budgets"),
        sa.UniqueConstraint("scope", "owner_id", "name", name="uq_budgets_scope_owner_id_name"),
        comment="Limits beside the run's own, with what is spent and held"
    )
    op.create_index("idx_budgets_tenant_id", "budgets", ["tenant_id"])


def _idempotency_keys() -> None:
    op.create_table("idempotency_keys",
        _tenant(),
        sa.Column("key", sa.Text(), nullable=False, comment="Sent by the client"),
        sa.Column("request_hash", sa.Text(), nullable=False, comment="sha256 of method, path and body"),
        sa.Column("status", sa.SmallInteger(), nullable=True, comment="HTTP status of the answer; null while it is worked on"),
        sa.Column('headers', JSONB(), server_default=sa.text("'{}'"), nullable=False, comment='Headers of the answer that count'),
        sa.Column("body", sa.LargeBinary(), nullable=True, comment="Body of the answer"),
        _instant("created_at", "When the row was made (UTC)"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_idempotency_keys_tenant_id"),
        sa.PrimaryKeyConstraint("tenant_id", "key", name="pk_idempotency_keys"),
        comment="Answers to POSTs by Idempotency-Key; removed after a day"
    )
    op.create_index("idx_idempotency_created", "idempotency_keys", ["created_at"])


def _project_templates() -> None:
    op.create_table("project_templates",
        _row_id(),
        _tenant(),
        sa.Column("slug", sa.Text(), nullable=False, comment="Short name, the same over all versions"),
        sa.Column("version", sa.Integer(), nullable=False, comment="Counts from 1 within the slug"),
        sa.Column("title", sa.Text(), nullable=False, comment="Shown name"),
        sa.Column("description", sa.Text(), server_default="", nullable=False, comment="What it is for"),
        sa.Column("graph", sa.Text(), nullable=False, comment="Name of the graph that its runs follow"),
        sa.Column("config_patch", JSONB(), nullable=False, comment="What differs from the defaults of a run"),
        sa.Column("content_hash", sa.Text(), nullable=False, comment="sha256 of the canonical content"),
        sa.Column("built_in", sa.Boolean(), server_default=sa.text("false"), nullable=False, comment="Loaded from the files that ship"),
        sa.Column("archived_at", INSTANT, nullable=True, comment="When it was put away; null while it is offered"),
        _instant("created_at", "When the row was made (UTC)"),
        sa.CheckConstraint("version >= 1", name=op.f("ck_project_templates_version")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_project_templates_tenant_id"),
        sa.PrimaryKeyConstraint("id", name="pk_project_templates"),
        sa.UniqueConstraint("tenant_id", "slug", "version", name="uq_project_templates_tenant_id_slug_version"),
        comment="Versioned presets of run configuration; a version never changes"
    )


def _projects() -> None:
    op.create_table("projects",
        _row_id(),
        _tenant(),
        sa.Column("name", sa.Text(), nullable=False, comment="Shown name"),
        sa.Column("brief", sa.Text(), nullable=False, comment="What is to be built, in the words of the person who wants it"),
        sa.Column("status", sa.Text(), server_default="DRAFT", nullable=False, comment="Life cycle, see domain/project.py"),
        sa.Column("template_slug", sa.Text(), nullable=False, comment="Preset that its runs start from"),
        sa.Column("template_version", sa.Integer(), nullable=False, comment="Version of the preset"),
        sa.Column('config_patch', JSONB(), server_default=sa.text("'{}'"), nullable=False, comment='What differs from the template'),
        sa.Column("active_run_id", sa.Uuid(), nullable=True, comment="The run that is on its way, if any"),
        sa.Column("spent_usd", MONEY, server_default="0", nullable=False, comment="Sum of all its runs"),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False, comment="Counts changes; sent as ETag, expected back in If-Match"),
        sa.Column("archived_at", INSTANT, nullable=True, comment="When it was put away"),
        _instant("created_at", "When the row was made (UTC)"),
        _instant("updated_at", "When the row last changed (UTC)"),
        sa.CheckConstraint("status IN ('DRAFT', 'READY', 'RUNNING', 'COMPLETED', 'FAILED', 'ARCHIVED')", name=op.f("ck_projects_status")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_projects_tenant_id"),
        sa.PrimaryKeyConstraint("id", name="pk_projects"),
        comment="Projects: a brief, a template and the runs that work on it"
    )
    op.create_index("idx_project_status_created", "projects", ["status", "created_at"])
    op.create_index("idx_project_tenant_created", "projects", ["tenant_id", "created_at", "id"])
    op.create_index("idx_projects_active_run_id", "projects", ["active_run_id"])


def _project_runs() -> None:
    op.create_table("project_runs",
        _row_id(),
        _tenant(),
        sa.Column("project_id", sa.Uuid(), nullable=False, comment="Whose run it is"),
        sa.Column("number", sa.Integer(), nullable=False, comment="Counts from 1 within the project"),
        sa.Column("status", sa.Text(), server_default="QUEUED", nullable=False, comment="Life cycle, see domain/run.py"),
        sa.Column("requested", sa.Text(), server_default="none", nullable=False, comment="What somebody asked of it: none, pause, stop"),
        sa.Column("graph", sa.Text(), nullable=False, comment="Name of its graph"),
        sa.Column("graph_version", sa.Text(), nullable=False, comment="Version of the graph it is pinned to"),
        sa.Column("template_slug", sa.Text(), nullable=False, comment="Preset it started from"),
        sa.Column("template_version", sa.Integer(), nullable=False, comment="Version of that preset"),
        sa.Column('brief', sa.Text(), nullable=False, comment="The project's brief when the run began"),
        sa.Column("config_snapshot", JSONB(), nullable=False, comment="All settings of the run; never changes"),
        sa.Column("limit_tokens", sa.BigInteger(), nullable=True, comment="Most tokens, input and output; null: no limit"),
        sa.Column("limit_usd", MONEY, nullable=True, comment="Most money; null: no limit"),
        sa.Column("limit_seconds", sa.Integer(), nullable=True, comment="Most seconds of work; null: no limit"),
        sa.Column("spent_tokens_input", sa.BigInteger(), server_default="0", nullable=False, comment="Billed input tokens"),
        sa.Column("spent_tokens_output", sa.BigInteger(), server_default="0", nullable=False, comment="Billed output tokens"),
        sa.Column("spent_tokens_cached", sa.BigInteger(), server_default="0", nullable=False, comment="Of the input: cached"),
        sa.Column("spent_usd", MONEY, server_default="0", nullable=False, comment="Billed money"),
        sa.Column("spent_seconds", MONEY, server_default="0", nullable=False, comment="Seconds of work, pauses left out"),
        sa.Column("reserved_tokens", sa.BigInteger(), server_default="0", nullable=False, comment="Held for calls in flight"),
        sa.Column("reserved_usd", MONEY, server_default="0", nullable=False, comment="Held for calls in flight"),
        sa.Column("model_calls", sa.Integer(), server_default="0", nullable=False, comment="Settled calls"),
        sa.Column("current_node", sa.Text(), nullable=True, comment="Node committed last or running now"),
        sa.Column("progress", sa.SmallInteger(), server_default="0", nullable=False, comment="Per cent, as the graph reports it"),
        sa.Column("lease_owner", sa.Text(), nullable=True, comment="Worker that drives it: host/pid/instance"),
        sa.Column("lease_epoch", sa.BigInteger(), server_default="0", nullable=False, comment="Fence: grows with every claim"),
        sa.Column("lease_expires_at", INSTANT, nullable=True, comment="When another worker may take it"),
        sa.Column("claims", sa.Integer(), server_default="0", nullable=False, comment="Claims since a node was last committed"),
        sa.Column("event_seq", sa.BigInteger(), server_default="0", nullable=False, comment="Number of its last event"),
        sa.Column("head_checkpoint_id", sa.Uuid(), nullable=True, comment="Latest checkpoint of the main namespace"),
        sa.Column("stop_reason", sa.Text(), nullable=True, comment="Code of why it ended or holds"),
        sa.Column("error", sa.Text(), nullable=True, comment="One sentence: what went wrong and what to do"),
        sa.Column("final_report", JSONB(), nullable=True, comment="What was done, decided and left open"),
        sa.Column("parent_run_id", sa.Uuid(), nullable=True, comment="Fork: of which run"),
        sa.Column("parent_checkpoint_id", sa.Text(), nullable=True, comment="Fork: from which checkpoint"),
        sa.Column("idempotency_key", sa.Text(), nullable=True, comment="Key that its start was asked with"),
        sa.Column("correlation_id", sa.Text(), server_default="", nullable=False, comment="Request id that started it"),
        sa.Column("started_by", sa.Text(), server_default="", nullable=False, comment="Who asked for it"),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False, comment="Counts changes; sent as ETag, expected back in If-Match"),
        sa.Column("queued_at", INSTANT, server_default=sa.text("clock_timestamp()"), nullable=False, comment="When it last became QUEUED"),
        sa.Column("started_at", INSTANT, nullable=True, comment="When it was first claimed"),
        sa.Column("ended_at", INSTANT, nullable=True, comment="When it ended"),
        _instant("created_at", "When the row was made (UTC)"),
        _instant("updated_at", "When the row last changed (UTC)"),
        sa.CheckConstraint("requested IN ('none', 'pause', 'stop')", name=op.f("ck_project_runs_requested")),
        sa.CheckConstraint("status IN ('QUEUED', 'RUNNING', 'PAUSED', 'WAITING', 'COMPLETED', 'FAILED', 'STOPPED_BUDGET', 'STOPPED_SECURITY', 'STOPPED_USER')", name=op.f("ck_project_runs_status")),
        sa.CheckConstraint("limit_tokens > 0 AND limit_usd > 0 AND limit_seconds > 0", name=op.f("ck_project_runs_limits")),
        sa.CheckConstraint("progress BETWEEN 0 AND 100", name=op.f("ck_project_runs_progress")),
        sa.CheckConstraint("reserved_tokens <= limit_tokens AND reserved_usd <= limit_usd", name=op.f("ck_project_runs_reserved_ceiling")),
        sa.CheckConstraint("reserved_tokens >= 0 AND reserved_usd >= 0", name=op.f("ck_project_runs_reserved_floor")),
        sa.CheckConstraint("spent_tokens_input >= 0 AND spent_tokens_output >= 0 AND spent_usd >= 0", name=op.f("ck_project_runs_spent_floor")),
        sa.ForeignKeyConstraint(["parent_run_id"], ["project_runs.id"], name="fk_project_runs_parent_run_id"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_project_runs_project_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_project_runs_tenant_id"),
        sa.PrimaryKeyConstraint("id", name="pk_project_runs"),
        sa.UniqueConstraint("project_id", "number", name="uq_project_runs_project_id_number"),
        comment="Runs: status, lease, limits and totals; one row is the truth about one run"
    )
    op.create_index("idx_project_runs_parent_run_id", "project_runs", ["parent_run_id"])
    op.create_index('idx_run_lease', 'project_runs', ['lease_expires_at'], postgresql_where=sa.text("status = 'RUNNING'"))
    op.create_index("idx_run_project_created", "project_runs", ["project_id", "created_at", "id"])
    op.create_index("idx_run_status_created", "project_runs", ["status", "created_at"])
    op.create_index("idx_run_tenant_created", "project_runs", ["tenant_id", "created_at", "id"])
    op.create_index("uq_run_idempotency", "project_runs", ["tenant_id", "idempotency_key"], unique=True, postgresql_where=sa.text("idempotency_key IS NOT NULL"))
    op.create_index('uq_run_one_active', 'project_runs', ['project_id'], unique=True, postgresql_where=sa.text("status IN ('PAUSED', 'QUEUED', 'RUNNING', 'WAITING')"))
    op.create_foreign_key("fk_projects_active_run_id", "projects", "project_runs", ["active_run_id"], ["id"])


def _dead_letters() -> None:
    op.create_table("dead_letters",
        _row_id(),
        _tenant(),
        sa.Column("run_id", sa.Uuid(), nullable=True, comment="Run it is about"),
        sa.Column("kind", sa.Text(), nullable=False, comment="run or delivery"),
        sa.Column("node", sa.Text(), nullable=True, comment="Node that could not be executed"),
        sa.Column("lease_epoch", sa.BigInteger(), nullable=True, comment="Fence of the last claim"),
        sa.Column("error", sa.Text(), nullable=False, comment="Last error, in a sentence"),
        sa.Column('payload', JSONB(), server_default=sa.text("'{}'"), nullable=False, comment='What is needed to do it again'),
        sa.Column("replayed_at", INSTANT, nullable=True, comment="When it was tried again"),
        _instant("created_at", "When the row was made (UTC)"),
        sa.CheckConstraint("kind IN ('run', 'delivery')", name=op.f("ck_dead_letters_kind")),
        sa.ForeignKeyConstraint(["run_id"], ["project_runs.id"], name="fk_dead_letters_run_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_dead_letters_tenant_id"),
        sa.PrimaryKeyConstraint("id", name="pk_dead_letters"),
        comment="What could not be executed or delivered; can be replayed"
    )
    op.create_index("idx_dead_letters_run_id", "dead_letters", ["run_id"])
    op.create_index("idx_dead_letters_tenant_id", "dead_letters", ["tenant_id"])


def _events() -> None:
    op.create_table("events",
        sa.Column("event_id", sa.Uuid(), server_default=sa.text("uuidv7()"), nullable=False, comment="Id of the event"),
        _tenant(),
        sa.Column("project_id", sa.Uuid(), nullable=True, comment="Project it is about"),
        sa.Column("run_id", sa.Uuid(), nullable=True, comment="Run it is about"),
        sa.Column("seq", sa.BigInteger(), nullable=True, comment="Number within the run, from 1, without gaps"),
        sa.Column("type", sa.Text(), nullable=False, comment="noun.past_tense, see domain/event.py"),
        sa.Column('version', sa.SmallInteger(), server_default='1', nullable=False, comment="Version of the payload's schema"),
        sa.Column("occurred_at", INSTANT, server_default=sa.text("clock_timestamp()"), nullable=False, comment="When it happened (UTC)"),
        sa.Column("source", sa.Text(), nullable=False, comment="Part that tells: api, engine, cli, …"),
        sa.Column("instance", sa.Text(), server_default="", nullable=False, comment="Process that tells: host/pid"),
        sa.Column("correlation_id", sa.Text(), server_default="", nullable=False, comment="Request that led to it"),
        sa.Column("causation_id", sa.Uuid(), nullable=True, comment="Event that led to it"),
        sa.Column('payload', JSONB(), server_default=sa.text("'{}'"), nullable=False, comment='Facts of the event'),
        sa.CheckConstraint("(run_id IS NULL) = (seq IS NULL)", name=op.f("ck_events_seq")),
        sa.ForeignKeyConstraint(["run_id"], ["project_runs.id"], name="fk_events_run_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("event_id", name="pk_events"),
        sa.UniqueConstraint("run_id", "seq", name="uq_events_run_id_seq"),
        comment="The one log: timeline, live stream, audit and outbox are read from it; rows are never changed"
    )
    op.create_index("idx_event_tenant_occurred", "events", ["tenant_id", "occurred_at", "event_id"])
    op.create_index("idx_event_project", "events", ["project_id"], postgresql_where=sa.text("run_id IS NULL"))


def _model_calls() -> None:
    op.create_table("model_calls",
        _row_id(),
        _tenant(),
        sa.Column("run_id", sa.Uuid(), nullable=False, comment="Run that pays"),
        sa.Column("task_id", sa.Uuid(), nullable=True, comment="Task it is for (no foreign key: the task may commit later)"),
        sa.Column("task_key", sa.Text(), nullable=True, comment="Key of that task"),
        sa.Column("node", sa.Text(), nullable=False, comment="Node that asked"),
        sa.Column("visit", sa.Integer(), nullable=False, comment="Visit of the node, from the state"),
        sa.Column("ordinal", sa.Integer(), nullable=False, comment="Counts the calls of the visit from 1"),
        sa.Column("attempt", sa.Integer(), nullable=False, comment="Counts the tries of the call from 1, over retries, fallbacks and crashes"),
        sa.Column("role", sa.Text(), nullable=False, comment="Role that asked"),
        sa.Column("provider", sa.Text(), nullable=False, comment="Provider that was called"),
        sa.Column("model", sa.Text(), nullable=False, comment="Model that was asked for"),
        sa.Column("status", sa.Text(), nullable=False, comment="reserved: in flight; done: paid; failed: booked or free; released: not sent"),
        sa.Column("replayable", sa.Boolean(), server_default=sa.text("true"), nullable=False, comment="Whether a done reply answers again after a crash"),
        sa.Column("request_hash", sa.Text(), nullable=False, comment="sha256 of the request without tool observations"),
        sa.Column("prompt_hash", sa.Text(), server_default="", nullable=False, comment="sha256 of the prompt files"),
        sa.Column("request", JSONB(), nullable=False, comment="What was asked: messages since the previous call of the visit"),
        sa.Column("response", JSONB(), nullable=True, comment="What was answered"),
        sa.Column("error", sa.Text(), nullable=True, comment="Why the attempt failed"),
        sa.Column("reserved_tokens", sa.BigInteger(), nullable=False, comment="Worst case that was held, tokens"),
        sa.Column("reserved_usd", MONEY, nullable=False, comment="Worst case that was held, money"),
        sa.Column("tokens_input", sa.BigInteger(), server_default="0", nullable=False, comment="Billed input tokens"),
        sa.Column("tokens_output", sa.BigInteger(), server_default="0", nullable=False, comment="Billed output tokens"),
        sa.Column("tokens_cached", sa.BigInteger(), server_default="0", nullable=False, comment="Of the input: cached"),
        sa.Column("cost_usd", MONEY, server_default="0", nullable=False, comment="Billed money at the price of that moment"),
        sa.Column("price_version", sa.Text(), server_default="", nullable=False, comment="Where the price came from"),
        sa.Column("latency_ms", sa.Integer(), nullable=True, comment="From sending to the whole answer"),
        sa.Column("lease_epoch", sa.BigInteger(), nullable=False, comment="Fence under which it was made"),
        _instant("created_at", "When the row was made (UTC)"),
        sa.Column("settled_at", INSTANT, nullable=True, comment="When it became done, failed or released"),
        sa.CheckConstraint("(status = 'reserved') = (settled_at IS NULL)", name=op.f("ck_model_calls_settled")),
        sa.CheckConstraint("role IN ('pm', 'developer', 'lead', 'qa', 'security', 'docs', 'devops')", name=op.f("ck_model_calls_role")),
        sa.CheckConstraint("status IN ('reserved', 'done', 'failed', 'released')", name=op.f("ck_model_calls_status")),
        sa.CheckConstraint("ordinal >= 1 AND attempt >= 1", name=op.f("ck_model_calls_position")),
        sa.CheckConstraint("reserved_tokens >= 0 AND reserved_usd >= 0", name=op.f("ck_model_calls_reserved_floor")),
        sa.CheckConstraint("tokens_input >= 0 AND tokens_output >= 0 AND tokens_cached >= 0 AND cost_usd >= 0", name=op.f("ck_model_calls_billed_floor")),
        sa.ForeignKeyConstraint(["run_id"], ["project_runs.id"], name="fk_model_calls_run_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_model_calls"),
        sa.UniqueConstraint("run_id", "node", "visit", "ordinal", "attempt", name="uq_model_calls_run_id_node_visit_ordinal_attempt"),
        comment="Every attempt at a model call: replayed after a crash, and what it cost"
    )
    op.create_index('idx_call_reserved', 'model_calls', ['run_id', 'lease_epoch'], postgresql_where=sa.text("status = 'reserved'"))
    op.create_index("idx_call_run_created", "model_calls", ["run_id", "created_at", "id"])
    op.create_index("idx_model_calls_task_id", "model_calls", ["task_id"], postgresql_where=sa.text("task_id IS NOT NULL"))


def _tasks() -> None:
    op.create_table("tasks",
        _row_id(),
        _tenant(),
        sa.Column("run_id", sa.Uuid(), nullable=False, comment="Run it belongs to"),
        sa.Column("parent_task_id", sa.Uuid(), nullable=True, comment="Task it is part of"),
        sa.Column("key", sa.Text(), nullable=False, comment="Short name, unique in the run"),
        sa.Column("title", sa.Text(), nullable=False, comment="What is to be done, in a line"),
        sa.Column("description", sa.Text(), server_default="", nullable=False, comment="What is to be done, in full (Markdown)"),
        sa.Column("kind", sa.Text(), nullable=False, comment="Why it exists: feature, bug, security, …"),
        sa.Column("status", sa.Text(), server_default="CREATED", nullable=False, comment="Life cycle, see domain/task.py"),
        sa.Column("assigned_role", sa.Text(), nullable=False, comment="Role that does it"),
        sa.Column("priority", sa.Integer(), server_default="0", nullable=False, comment="Higher goes first"),
        sa.Column("iteration", sa.Integer(), server_default="0", nullable=False, comment="Rounds of work on it so far"),
        sa.Column('acceptance_criteria', JSONB(), server_default=sa.text("'[]'"), nullable=False, comment='When it is done: sentences'),
        sa.Column("branch", sa.Text(), nullable=True, comment="Git branch of the work"),
        sa.Column("commit", sa.Text(), nullable=True, comment="Git commit of the work"),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False, comment="Counts changes; sent as ETag, expected back in If-Match"),
        _instant("created_at", "When the row was made (UTC)"),
        _instant("updated_at", "When the row last changed (UTC)"),
        sa.CheckConstraint("assigned_role IN ('pm', 'developer', 'lead', 'qa', 'security', 'docs', 'devops')", name=op.f("ck_tasks_assigned_role")),
        sa.CheckConstraint("kind IN ('feature', 'bug', 'security', 'conflict', 'test', 'docs', 'devops')", name=op.f("ck_tasks_kind")),
        sa.CheckConstraint("status IN ('CREATED', 'READY', 'BLOCKED', 'IN_PROGRESS', 'DONE', 'FAILED')", name=op.f("ck_tasks_status")),
        sa.CheckConstraint("iteration >= 0", name=op.f("ck_tasks_iteration")),
        sa.CheckConstraint("parent_task_id <> id", name=op.f("ck_tasks_not_its_parent")),
        sa.ForeignKeyConstraint(["parent_task_id"], ["tasks.id"], name="fk_tasks_parent_task_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["run_id"], ["project_runs.id"], name="fk_tasks_run_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_tasks"),
        sa.UniqueConstraint("run_id", "key", name="uq_tasks_run_id_key"),
        comment="Tasks of a run: a tree by parent, a DAG by task_dependencies"
    )
    op.create_index("idx_task_run_created", "tasks", ["run_id", "created_at", "id"])
    op.create_index("idx_task_status_assigned", "tasks", ["status", "assigned_role"])
    op.create_index("idx_tasks_parent_task_id", "tasks", ["parent_task_id"], postgresql_where=sa.text("parent_task_id IS NOT NULL"))


def _artifacts() -> None:
    op.create_table("artifacts",
        _row_id(),
        _tenant(),
        sa.Column("run_id", sa.Uuid(), nullable=False, comment="Run that made it"),
        sa.Column("task_id", sa.Uuid(), nullable=True, comment="Task that made it"),
        sa.Column("kind", sa.Text(), nullable=False, comment="repository, report, document, test_report, scan_report, …"),
        sa.Column("path", sa.Text(), nullable=False, comment="Path in the repository or name in the store"),
        sa.Column("media_type", sa.Text(), nullable=False, comment="Media type"),
        sa.Column("size", sa.BigInteger(), nullable=False, comment="Bytes"),
        sa.Column("sha256", sa.Text(), nullable=False, comment="Hash of the body, hexadecimal"),
        sa.Column("commit", sa.Text(), nullable=True, comment="Commit that holds the body; null: the artifact store does"),
        _instant("created_at", "When the row was made (UTC)"),
        sa.CheckConstraint("size >= 0", name=op.f("ck_artifacts_size")),
        sa.ForeignKeyConstraint(["run_id"], ["project_runs.id"], name="fk_artifacts_run_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name="fk_artifacts_task_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_artifacts"),
        comment="What runs made: metadata only; bodies are in git or the artifact store"
    )
    op.create_index("idx_artifact_run_created", "artifacts", ["run_id", "created_at", "id"])
    op.create_index("idx_artifacts_task_id", "artifacts", ["task_id"], postgresql_where=sa.text("task_id IS NOT NULL"))


def _findings() -> None:
    op.create_table("findings",
        _row_id(),
        _tenant(),
        sa.Column("run_id", sa.Uuid(), nullable=False, comment="Run that found it"),
        sa.Column("task_id", sa.Uuid(), nullable=True, comment="Task it is about"),
        sa.Column("source", sa.Text(), nullable=False, comment="Gate that reported it: review, qa, security, devops"),
        sa.Column("scanner", sa.Text(), nullable=False, comment="Program or role that found it"),
        sa.Column('rule', sa.Text(), nullable=False, comment="The scanner's name for the rule"),
        sa.Column("severity", sa.Text(), nullable=False, comment="INFO, LOW, MEDIUM, HIGH, CRITICAL"),
        sa.Column("path", sa.Text(), nullable=True, comment="File in the repository"),
        sa.Column("line", sa.Integer(), nullable=True, comment="Line, from 1"),
        sa.Column("message", sa.Text(), nullable=False, comment="What was found"),
        sa.Column("fingerprint", sa.Text(), nullable=False, comment="The same when lines move"),
        sa.Column("status", sa.Text(), server_default="open", nullable=False, comment="open, fixed, waived, false_positive"),
        sa.Column("waived_by", sa.Text(), nullable=True, comment="Person who waived it"),
        sa.Column("waived_reason", sa.Text(), nullable=True, comment="Why it was waived"),
        sa.Column("waived_until", INSTANT, nullable=True, comment="When the waiver ends"),
        _instant("created_at", "When the row was made (UTC)"),
        _instant("updated_at", "When the row last changed (UTC)"),
        sa.CheckConstraint("severity IN ('INFO', 'LOW', 'MEDIUM', 'HIGH', 'CRITICAL')", name=op.f("ck_findings_severity")),
        sa.CheckConstraint("source IN ('review', 'qa', 'security', 'devops')", name=op.f("ck_findings_source")),
        sa.CheckConstraint("status <> 'waived' OR (waived_by IS NOT NULL AND waived_reason IS NOT NULL AND waived_until IS NOT NULL)", name=op.f("ck_findings_waiver")),
        sa.CheckConstraint("status IN ('open', 'fixed', 'waived', 'false_positive')", name=op.f("ck_findings_status")),
        sa.ForeignKeyConstraint(["run_id"], ["project_runs.id"], name="fk_findings_run_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name="fk_findings_task_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_findings"),
        sa.UniqueConstraint("run_id", "fingerprint", name="uq_findings_run_id_fingerprint"),
        comment="Findings of scanners, tests and reviews; a waiver names who, why and until when"
    )
    op.create_index("idx_finding_run_status", "findings", ["run_id", "status", "severity"])
    op.create_index("idx_findings_task_id", "findings", ["task_id"], postgresql_where=sa.text("task_id IS NOT NULL"))


def _questions() -> None:
    op.create_table("questions",
        _row_id(),
        _tenant(),
        sa.Column("run_id", sa.Uuid(), nullable=False, comment="Run that asks"),
        sa.Column("task_id", sa.Uuid(), nullable=True, comment="Task it is about"),
        sa.Column("key", sa.Text(), nullable=False, comment="Name by which the graph finds the answer; unique in the run"),
        sa.Column("kind", sa.Text(), nullable=False, comment="clarification, approval, budget"),
        sa.Column("asked_by", sa.Text(), nullable=False, comment="Role or `engine`"),
        sa.Column("text", sa.Text(), nullable=False, comment="The question (Markdown)"),
        sa.Column('options', JSONB(), server_default=sa.text("'[]'"), nullable=False, comment='Answers to choose from; empty: free text'),
        sa.Column("default", sa.Text(), nullable=True, comment="Answer that is taken when nobody answers in time"),
        sa.Column("due_at", INSTANT, nullable=True, comment="When it expires; null: never"),
        sa.Column("on_expiry", sa.Text(), server_default="stop", nullable=False, comment="default: take the default; stop: stop the run"),
        sa.Column("status", sa.Text(), server_default="OPEN", nullable=False, comment="OPEN, ANSWERED, EXPIRED, WITHDRAWN"),
        sa.Column("answer", sa.Text(), nullable=True, comment="What was answered"),
        sa.Column("answered_by", sa.Text(), nullable=True, comment="Who answered; `expiry`: nobody did"),
        sa.Column("answered_at", INSTANT, nullable=True, comment="When it was answered"),
        _instant("created_at", "When the row was made (UTC)"),
        sa.CheckConstraint("kind IN ('clarification', 'approval', 'budget')", name=op.f("ck_questions_kind")),
        sa.CheckConstraint("on_expiry IN ('default', 'stop')", name=op.f("ck_questions_on_expiry")),
        sa.CheckConstraint("status <> 'ANSWERED' OR (answer IS NOT NULL AND answered_by IS NOT NULL AND answered_at IS NOT NULL)", name=op.f("ck_questions_answer")),
        sa.CheckConstraint("status IN ('OPEN', 'ANSWERED', 'EXPIRED', 'WITHDRAWN')", name=op.f("ck_questions_status")),
        sa.ForeignKeyConstraint(["run_id"], ["project_runs.id"], name="fk_questions_run_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name="fk_questions_task_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_questions"),
        sa.UniqueConstraint("run_id", "key", name="uq_questions_run_id_key"),
        comment="What runs ask people; answered once"
    )
    op.create_index('idx_question_due', 'questions', ['due_at'], postgresql_where=sa.text("status = 'OPEN'"))
    op.create_index("idx_question_status_created", "questions", ["status", "created_at", "id"])
    op.create_index("idx_questions_task_id", "questions", ["task_id"], postgresql_where=sa.text("task_id IS NOT NULL"))


def _task_comments() -> None:
    op.create_table("task_comments",
        _row_id(),
        _tenant(),
        sa.Column("run_id", sa.Uuid(), nullable=False, comment="Run it belongs to"),
        sa.Column("task_id", sa.Uuid(), nullable=True, comment="Task it is about; null: the whole run"),
        sa.Column("parent_comment_id", sa.Uuid(), nullable=True, comment="Comment it replies to"),
        sa.Column("author_role", sa.Text(), nullable=True, comment="Role that wrote it; null: a person or the engine"),
        sa.Column("author_name", sa.Text(), nullable=False, comment="Role, person or `engine`"),
        sa.Column("comment_type", sa.Text(), nullable=False, comment="What it is for: note, review, gate, …"),
        sa.Column("body", sa.Text(), nullable=False, comment="Markdown"),
        sa.Column('metrics', JSONB(), server_default=sa.text("'{}'"), nullable=False, comment='Figures it speaks of'),
        sa.Column('blockers', JSONB(), server_default=sa.text("'[]'"), nullable=False, comment='What is in the way: sentences'),
        sa.Column('next_steps', JSONB(), server_default=sa.text("'[]'"), nullable=False, comment='What comes next: sentences'),
        sa.Column("rationale", sa.Text(), nullable=True, comment="Why it was decided so"),
        sa.Column("node", sa.Text(), nullable=True, comment="Node that wrote it"),
        sa.Column("visit", sa.Integer(), nullable=True, comment="Visit of the node"),
        _instant("created_at", "When the row was made (UTC)"),
        sa.CheckConstraint("comment_type IN ('note', 'analysis', 'plan', 'progress', 'review', 'merge', 'test_report', 'security_report', 'gate', 'question', 'answer', 'docs', 'devops', 'report')", name=op.f("ck_task_comments_comment_type")),
        sa.ForeignKeyConstraint(["parent_comment_id"], ["task_comments.id"], name="fk_task_comments_parent_comment_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["run_id"], ["project_runs.id"], name="fk_task_comments_run_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name="fk_task_comments_task_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_task_comments"),
        comment="The audit trail: what roles and people said about tasks; rows are never changed"
    )
    op.create_index("idx_comment_run_created", "task_comments", ["run_id", "created_at", "id"])
    op.create_index("idx_comment_task_created", "task_comments", ["task_id", "created_at"])
    op.create_index("idx_comment_type_agent", "task_comments", ["comment_type", "author_role"])
    op.create_index("idx_task_comments_parent_comment_id", "task_comments", ["parent_comment_id"], postgresql_where=sa.text("parent_comment_id IS NOT NULL"))


def _task_dependencies() -> None:
    op.create_table("task_dependencies",
        sa.Column("task_id", sa.Uuid(), nullable=False, comment="The task that waits"),
        sa.Column("depends_on_task_id", sa.Uuid(), nullable=False, comment="The task it waits for"),
        sa.CheckConstraint("task_id <> depends_on_task_id", name=op.f("ck_task_dependencies_not_itself")),
        sa.ForeignKeyConstraint(["depends_on_task_id"], ["tasks.id"], name="fk_task_dependencies_depends_on_task_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name="fk_task_dependencies_task_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("task_id", "depends_on_task_id", name="pk_task_dependencies"),
        comment="Which task waits for which; a trigger refuses cycles"
    )
    op.create_index("idx_task_dependencies_depends_on_task_id", "task_dependencies", ["depends_on_task_id"])
