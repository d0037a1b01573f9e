"""Every table of the run store, with comments that people read in pgAdmin.

Status words are checked here and guarded by triggers in the migrations; `operations` and the engine are the only
writers. Ids are UUIDv7 made by Postgres, or UUIDv5 from `domain/ids.py` where they must be the same after a crash.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    ForeignKey,
    Index,
    PrimaryKeyConstraint,
    SmallInteger,
    UniqueConstraint,
    Uuid,
)
from sqlalchemy import text as sql
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from backend.adapters.db.budget_table import Budget
from backend.adapters.db.columns import (
    Table,
    created,
    one_of,
    row_id,
    row_version,
    storable,
    storable_json,
    tenant,
    tenant_of_run,
    updated,
)
from backend.domain.comment import CommentType
from backend.domain.finding import FindingSource, FindingStatus, Severity
from backend.domain.project import ProjectStatus
from backend.domain.question import ExpiryAction, QuestionKind, QuestionStatus
from backend.domain.role import Role
from backend.domain.run import ACTIVE, Request, RunStatus
from backend.domain.task import TaskKind, TaskStatus

__all__ = [
    "Artifact",
    "Budget",
    "DeadLetter",
    "Event",
    "Finding",
    "IdempotencyKey",
    "ModelCall",
    "Project",
    "ProjectRun",
    "ProjectTemplate",
    "Prompt",
    "Question",
    "Table",
    "Task",
    "TaskComment",
    "TaskDependency",
    "Tenant",
    "storable",
    "storable_json",
]


class Tenant(Table):
    """Owner of projects, templates and keys."""

    __tablename__ = "tenants"
    id: Mapped[UUID] = row_id()
    name: Mapped[str] = mapped_column(unique=True, comment="Shown name")
    monthly_budget_usd: Mapped[Decimal | None] = mapped_column(comment="Limit of all runs in a calendar month (UTC)")
    monthly_budget_tokens: Mapped[int | None] = mapped_column(
        BigInteger, comment="Most tokens of all runs in a calendar month (UTC)"
    )
    monthly_budget_seconds: Mapped[int | None] = mapped_column(
        comment="Most seconds that all runs work in a calendar month (UTC)"
    )
    created_at: Mapped[datetime] = created()
    __table_args__ = ({"comment": "Owners of projects, templates and keys; every query is scoped by one"},)


class ProjectTemplate(Table):
    """A versioned preset; immutable but for `archived_at`."""

    __tablename__ = "project_templates"
    id: Mapped[UUID] = row_id()
    tenant_id: Mapped[UUID] = tenant(index=False)
    slug: Mapped[str] = mapped_column(comment="Short name, the same over all versions")
    version: Mapped[int] = mapped_column(comment="Counts from 1 within the slug")
    title: Mapped[str] = mapped_column(comment="Shown name")
    description: Mapped[str] = mapped_column(server_default="", comment="What it is for")
    graph: Mapped[str] = mapped_column(comment="Name of the graph that its runs follow")
    config_patch: Mapped[dict[str, Any]] = mapped_column(comment="What differs from the defaults of a run")
    content_hash: Mapped[str] = mapped_column(comment="sha256 of the canonical content")
    built_in: Mapped[bool] = mapped_column(server_default=sql("false"), comment="Loaded from the files that ship")
    archived_at: Mapped[datetime | None] = mapped_column(comment="When it was put away; null while it is offered")
    created_at: Mapped[datetime] = created()
    __table_args__ = (
        UniqueConstraint("tenant_id", "slug", "version"),
        CheckConstraint("version >= 1", name="version"),
        {"comment": "Versioned presets of run configuration; a version never changes"},
    )


class Project(Table):
    """A brief and what became of it."""

    __tablename__ = "projects"
    id: Mapped[UUID] = row_id()
    tenant_id: Mapped[UUID] = tenant(index=False)
    name: Mapped[str] = mapped_column(comment="Shown name")
    brief: Mapped[str] = mapped_column(comment="What is to be built, in the words of the person who wants it")
    status: Mapped[str] = mapped_column(server_default="DRAFT", comment="Life cycle, see domain/project.py")
    template_slug: Mapped[str] = mapped_column(comment="Preset that its runs start from")
    template_version: Mapped[int] = mapped_column(comment="Version of the preset")
    config_patch: Mapped[dict[str, Any]] = mapped_column(
        server_default=sql("'{}'"), comment="What differs from the template"
    )
    active_run_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("project_runs.id", use_alter=True), index=True, comment="The run that is on its way, if any"
    )
    spent_usd: Mapped[Decimal] = mapped_column(server_default="0", comment="Sum of all its runs")
    version: Mapped[int] = row_version()
    archived_at: Mapped[datetime | None] = mapped_column(comment="When it was put away")
    created_at: Mapped[datetime] = created()
    updated_at: Mapped[datetime] = updated()
    __table_args__ = (
        one_of("status", ProjectStatus),
        Index("idx_project_status_created", "status", "created_at"),
        Index("idx_project_tenant_created", "tenant_id", "created_at", "id"),
        {"comment": "Projects: a brief, a template and the runs that work on it"},
    )


class ProjectRun(Table):
    """One execution of a graph for a project, with its lease, limits and totals."""

    __tablename__ = "project_runs"
    id: Mapped[UUID] = row_id()
    tenant_id: Mapped[UUID] = tenant(index=False)
    project_id: Mapped[UUID] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), comment="Whose run it is")
    number: Mapped[int] = mapped_column(comment="Counts from 1 within the project")
    status: Mapped[str] = mapped_column(server_default="QUEUED", comment="Life cycle, see domain/run.py")
    requested: Mapped[str] = mapped_column(
        server_default="none", comment="What somebody asked of it: none, pause, stop"
    )
    pause_at_once: Mapped[bool] = mapped_column(
        server_default=sql("false"), comment="Whether the pause that was asked for last cuts the node short"
    )
    graph: Mapped[str] = mapped_column(comment="Name of its graph")
    graph_version: Mapped[str] = mapped_column(comment="Version of the graph it is pinned to")
    prompts: Mapped[dict[str, str] | None] = mapped_column(
        JSONB(none_as_null=True),
        comment="Prompts it is pinned to: sha256 by name; null: no release that pins them took it up yet",
    )
    template_slug: Mapped[str] = mapped_column(comment="Preset it started from")
    template_version: Mapped[int] = mapped_column(comment="Version of that preset")
    brief: Mapped[str] = mapped_column(comment="The project's brief when the run began")
    config_snapshot: Mapped[dict[str, Any]] = mapped_column(comment="All settings of the run; never changes")
    limit_tokens: Mapped[int | None] = mapped_column(
        BigInteger, comment="Most tokens, input and output; null: no limit"
    )
    limit_usd: Mapped[Decimal | None] = mapped_column(comment="Most money; null: no limit")
    limit_seconds: Mapped[int | None] = mapped_column(comment="Most seconds of work; null: no limit")
    spent_tokens_input: Mapped[int] = mapped_column(BigInteger, server_default="0", comment="Billed input tokens")
    spent_tokens_output: Mapped[int] = mapped_column(BigInteger, server_default="0", comment="Billed output tokens")
    spent_tokens_cached: Mapped[int] = mapped_column(BigInteger, server_default="0", comment="Of the input: cached")
    spent_usd: Mapped[Decimal] = mapped_column(server_default="0", comment="Billed money")
    spent_seconds: Mapped[Decimal] = mapped_column(server_default="0", comment="Seconds of work, pauses left out")
    reserved_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0", comment="Held for calls in flight")
    reserved_usd: Mapped[Decimal] = mapped_column(server_default="0", comment="Held for calls in flight")
    model_calls: Mapped[int] = mapped_column(server_default="0", comment="Settled calls")
    current_node: Mapped[str | None] = mapped_column(comment="Node committed last or running now")
    progress: Mapped[int] = mapped_column(SmallInteger, server_default="0", comment="Per cent, as the graph reports it")
    lease_owner: Mapped[str | None] = mapped_column(comment="Worker that drives it: host/pid/instance")
    lease_epoch: Mapped[int] = mapped_column(BigInteger, server_default="0", comment="Fence: grows with every claim")
    lease_expires_at: Mapped[datetime | None] = mapped_column(comment="When another worker may take it")
    granted_at: Mapped[datetime | None] = mapped_column(
        comment="Since when it works on its grant; null: no limit in seconds that it shares"
    )
    granted_until: Mapped[datetime | None] = mapped_column(comment="Until when it may work on it")
    granted_budgets: Mapped[list[UUID] | None] = mapped_column(ARRAY(Uuid), comment="Budgets that the grant is held in")
    claims: Mapped[int] = mapped_column(server_default="0", comment="Claims since a node was last committed")
    event_seq: Mapped[int] = mapped_column(BigInteger, server_default="0", comment="Number of its last event")
    head_checkpoint_id: Mapped[UUID | None] = mapped_column(comment="Latest checkpoint of the main namespace")
    stop_reason: Mapped[str | None] = mapped_column(comment="Code of why it ended or holds")
    error: Mapped[str | None] = mapped_column(comment="One sentence: what went wrong and what to do")
    final_report: Mapped[dict[str, Any] | None] = mapped_column(comment="What was done, decided and left open")
    parent_run_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("project_runs.id"), index=True, comment="Fork: of which run"
    )
    parent_checkpoint_id: Mapped[str | None] = mapped_column(comment="Fork: from which checkpoint")
    idempotency_key: Mapped[str | None] = mapped_column(comment="Key that its start was asked with")
    correlation_id: Mapped[str] = mapped_column(server_default="", comment="Request id that started it")
    started_by: Mapped[str] = mapped_column(server_default="", comment="Who asked for it")
    version: Mapped[int] = row_version()
    queued_at: Mapped[datetime] = mapped_column(
        server_default=sql("clock_timestamp()"), comment="When it last became QUEUED"
    )
    started_at: Mapped[datetime | None] = mapped_column(comment="When it was first claimed")
    ended_at: Mapped[datetime | None] = mapped_column(comment="When it ended")
    created_at: Mapped[datetime] = created()
    updated_at: Mapped[datetime] = updated()
    __table_args__ = (
        one_of("status", RunStatus),
        one_of("requested", Request),
        UniqueConstraint("project_id", "number"),
        CheckConstraint("reserved_tokens >= 0 AND reserved_usd >= 0", name="reserved_floor"),
        CheckConstraint("reserved_tokens <= limit_tokens AND reserved_usd <= limit_usd", name="reserved_ceiling"),
        CheckConstraint("spent_tokens_input >= 0 AND spent_tokens_output >= 0 AND spent_usd >= 0", name="spent_floor"),
        CheckConstraint("limit_tokens > 0 AND limit_usd > 0 AND limit_seconds > 0", name="limits"),
        CheckConstraint("progress BETWEEN 0 AND 100", name="progress"),
        CheckConstraint(
            "(granted_at IS NULL) = (granted_until IS NULL) AND (granted_at IS NULL) = (granted_budgets IS NULL)"
            " AND granted_until >= granted_at",
            name="granted",
        ),
        Index("idx_run_status_created", "status", "created_at"),
        Index("idx_run_project_created", "project_id", "created_at", "id"),
        Index("idx_run_tenant_created", "tenant_id", "created_at", "id"),
        Index("idx_run_lease", "lease_expires_at", postgresql_where=sql("status = 'RUNNING'")),
        Index(
            "uq_run_idempotency",
            "tenant_id",
            "idempotency_key",
            unique=True,
            postgresql_where=sql("idempotency_key IS NOT NULL"),
        ),
        Index(
            "uq_run_one_active",
            "project_id",
            unique=True,
            postgresql_where=sql("status IN (" + ", ".join(f"'{s}'" for s in sorted(ACTIVE)) + ")"),
        ),
        {"comment": "Runs: status, lease, limits and totals; one row is the truth about one run"},
    )


class Prompt(Table):
    """A text that runs are pinned to, once for all of them."""

    __tablename__ = "prompts"
    sha256: Mapped[str] = mapped_column(primary_key=True, comment="sha256 of the text, which is its name here")
    name: Mapped[str] = mapped_column(comment="Prompt that it was first kept for")
    text: Mapped[str] = mapped_column(comment="The prompt file, before any fact is put in")
    created_at: Mapped[datetime] = created()
    __table_args__ = (
        CheckConstraint("sha256 = encode(sha256(convert_to(text, 'UTF8')), 'hex')", name="content"),
        {"comment": "Texts of prompts by what they say; added by the worker that first needs them, never changed"},
    )


class Task(Table):
    """A piece of work of a run."""

    __tablename__ = "tasks"
    id: Mapped[UUID] = row_id()
    tenant_id: Mapped[UUID] = tenant_of_run()
    run_id: Mapped[UUID] = mapped_column(ForeignKey("project_runs.id", ondelete="CASCADE"), comment="Run it belongs to")
    parent_task_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("tasks.id", ondelete="CASCADE"), comment="Task it is part of"
    )
    key: Mapped[str] = mapped_column(comment="Short name, unique in the run")
    title: Mapped[str] = mapped_column(comment="What is to be done, in a line")
    description: Mapped[str] = mapped_column(server_default="", comment="What is to be done, in full (Markdown)")
    kind: Mapped[str] = mapped_column(comment="Why it exists: feature, bug, security, …")
    status: Mapped[str] = mapped_column(server_default="CREATED", comment="Life cycle, see domain/task.py")
    assigned_role: Mapped[str] = mapped_column(comment="Role that does it")
    priority: Mapped[int] = mapped_column(server_default="0", comment="Higher goes first")
    iteration: Mapped[int] = mapped_column(server_default="0", comment="Rounds of work on it so far")
    acceptance_criteria: Mapped[list[Any]] = mapped_column(
        server_default=sql("'[]'"), comment="When it is done: sentences"
    )
    branch: Mapped[str | None] = mapped_column(comment="Git branch of the work")
    commit: Mapped[str | None] = mapped_column(comment="Git commit of the work")
    version: Mapped[int] = row_version()
    created_at: Mapped[datetime] = created()
    updated_at: Mapped[datetime] = updated()
    __table_args__ = (
        one_of("status", TaskStatus),
        one_of("kind", TaskKind),
        one_of("assigned_role", Role),
        UniqueConstraint("run_id", "key"),
        CheckConstraint("iteration >= 0", name="iteration"),
        CheckConstraint("parent_task_id <> id", name="not_its_parent"),
        Index("idx_task_status_assigned", "status", "assigned_role"),
        Index("idx_task_run_created", "run_id", "created_at", "id"),
        Index("idx_tasks_parent_task_id", "parent_task_id", postgresql_where=sql("parent_task_id IS NOT NULL")),
        {"comment": "Tasks of a run: a tree by parent, a DAG by task_dependencies"},
    )


class TaskDependency(Table):
    """Which task waits for which."""

    __tablename__ = "task_dependencies"
    task_id: Mapped[UUID] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"), comment="The task that waits")
    depends_on_task_id: Mapped[UUID] = mapped_column(
        ForeignKey("tasks.id", ondelete="CASCADE"), index=True, comment="The task it waits for"
    )
    __table_args__ = (
        PrimaryKeyConstraint("task_id", "depends_on_task_id"),
        CheckConstraint("task_id <> depends_on_task_id", name="not_itself"),
        {"comment": "Which task waits for which; a trigger refuses cycles"},
    )


class TaskComment(Table):
    """One entry of the audit trail; append-only."""

    __tablename__ = "task_comments"
    id: Mapped[UUID] = row_id()
    tenant_id: Mapped[UUID] = tenant_of_run()
    run_id: Mapped[UUID] = mapped_column(ForeignKey("project_runs.id", ondelete="CASCADE"), comment="Run it belongs to")
    task_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("tasks.id", ondelete="CASCADE"), comment="Task it is about; null: the whole run"
    )
    parent_comment_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("task_comments.id", ondelete="CASCADE"), comment="Comment it replies to"
    )
    author_role: Mapped[str | None] = mapped_column(comment="Role that wrote it; null: a person or the engine")
    author_name: Mapped[str] = mapped_column(comment="Role, person or `engine`")
    comment_type: Mapped[str] = mapped_column(comment="What it is for: note, review, gate, …")
    body: Mapped[str] = mapped_column(comment="Markdown")
    metrics: Mapped[dict[str, Any]] = mapped_column(server_default=sql("'{}'"), comment="Figures it speaks of")
    blockers: Mapped[list[Any]] = mapped_column(server_default=sql("'[]'"), comment="What is in the way: sentences")
    next_steps: Mapped[list[Any]] = mapped_column(server_default=sql("'[]'"), comment="What comes next: sentences")
    rationale: Mapped[str | None] = mapped_column(comment="Why it was decided so")
    node: Mapped[str | None] = mapped_column(comment="Node that wrote it")
    visit: Mapped[int | None] = mapped_column(comment="Visit of the node")
    created_at: Mapped[datetime] = created()
    __table_args__ = (
        one_of("comment_type", CommentType),
        Index("idx_comment_type_agent", "comment_type", "author_role"),
        Index("idx_comment_task_created", "task_id", "created_at"),
        Index("idx_comment_run_created", "run_id", "created_at", "id"),
        Index(
            "idx_task_comments_parent_comment_id",
            "parent_comment_id",
            postgresql_where=sql("parent_comment_id IS NOT NULL"),
        ),
        {"comment": "The audit trail: what roles and people said about tasks; rows are never changed"},
    )


class Artifact(Table):
    """Metadata of what a run made."""

    __tablename__ = "artifacts"
    id: Mapped[UUID] = row_id()
    tenant_id: Mapped[UUID] = tenant_of_run()
    run_id: Mapped[UUID] = mapped_column(ForeignKey("project_runs.id", ondelete="CASCADE"), comment="Run that made it")
    task_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("tasks.id", ondelete="CASCADE"), comment="Task that made it"
    )
    kind: Mapped[str] = mapped_column(comment="repository, report, document, test_report, scan_report, …")
    path: Mapped[str] = mapped_column(comment="Path in the repository or name in the store")
    media_type: Mapped[str] = mapped_column(comment="Media type")
    size: Mapped[int] = mapped_column(BigInteger, comment="Bytes")
    sha256: Mapped[str] = mapped_column(comment="Hash of the body, hexadecimal")
    commit: Mapped[str | None] = mapped_column(comment="Commit that holds the body; null: the artifact store does")
    created_at: Mapped[datetime] = created()
    __table_args__ = (
        CheckConstraint("size >= 0", name="size"),
        Index("idx_artifact_run_created", "run_id", "created_at", "id"),
        Index("idx_artifacts_task_id", "task_id", postgresql_where=sql("task_id IS NOT NULL")),
        {"comment": "What runs made: metadata only; bodies are in git or the artifact store"},
    )


class Finding(Table):
    """What scanners, tests and reviews found."""

    __tablename__ = "findings"
    id: Mapped[UUID] = row_id()
    tenant_id: Mapped[UUID] = tenant_of_run()
    run_id: Mapped[UUID] = mapped_column(ForeignKey("project_runs.id", ondelete="CASCADE"), comment="Run that found it")
    task_id: Mapped[UUID | None] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"), comment="Task it is about")
    source: Mapped[str] = mapped_column(comment="Gate that reported it: review, qa, security, devops")
    scanner: Mapped[str] = mapped_column(comment="Program or role that found it")
    rule: Mapped[str] = mapped_column(comment="The scanner's name for the rule")
    severity: Mapped[str] = mapped_column(comment="INFO, LOW, MEDIUM, HIGH, CRITICAL")
    path: Mapped[str | None] = mapped_column(comment="File in the repository")
    line: Mapped[int | None] = mapped_column(comment="Line, from 1")
    message: Mapped[str] = mapped_column(comment="What was found")
    fingerprint: Mapped[str] = mapped_column(comment="The same when lines move")
    status: Mapped[str] = mapped_column(server_default="open", comment="open, fixed, waived, false_positive")
    waived_by: Mapped[str | None] = mapped_column(comment="Person who waived it")
    waived_reason: Mapped[str | None] = mapped_column(comment="Why it was waived")
    waived_until: Mapped[datetime | None] = mapped_column(comment="When the waiver ends")
    created_at: Mapped[datetime] = created()
    updated_at: Mapped[datetime] = updated()
    __table_args__ = (
        one_of("status", FindingStatus),
        one_of("severity", Severity),
        one_of("source", FindingSource),
        UniqueConstraint("run_id", "fingerprint"),
        CheckConstraint(
            "status <> 'waived' OR (waived_by IS NOT NULL AND waived_reason IS NOT NULL AND waived_until IS NOT NULL)",
            name="waiver",
        ),
        Index("idx_finding_run_status", "run_id", "status", "severity"),
        Index("idx_findings_task_id", "task_id", postgresql_where=sql("task_id IS NOT NULL")),
        {"comment": "Findings of scanners, tests and reviews; a waiver names who, why and until when"},
    )


class Question(Table):
    """What people are asked, answered once."""

    __tablename__ = "questions"
    id: Mapped[UUID] = row_id()
    tenant_id: Mapped[UUID] = tenant_of_run()
    run_id: Mapped[UUID] = mapped_column(ForeignKey("project_runs.id", ondelete="CASCADE"), comment="Run that asks")
    task_id: Mapped[UUID | None] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"), comment="Task it is about")
    key: Mapped[str] = mapped_column(comment="Name by which the graph finds the answer; unique in the run")
    kind: Mapped[str] = mapped_column(comment="clarification, approval, budget")
    asked_by: Mapped[str] = mapped_column(comment="Role or `engine`")
    text: Mapped[str] = mapped_column(comment="The question (Markdown)")
    options: Mapped[list[Any]] = mapped_column(
        server_default=sql("'[]'"), comment="Answers to choose from; empty: free text"
    )
    default: Mapped[str | None] = mapped_column(comment="Answer that is taken when nobody answers in time")
    due_at: Mapped[datetime | None] = mapped_column(comment="When it expires; null: never")
    on_expiry: Mapped[str] = mapped_column(
        server_default="stop", comment="default: take the default; stop: stop the run"
    )
    status: Mapped[str] = mapped_column(server_default="OPEN", comment="OPEN, ANSWERED, EXPIRED, WITHDRAWN")
    answer: Mapped[str | None] = mapped_column(comment="What was answered")
    answered_by: Mapped[str | None] = mapped_column(comment="Who answered; `expiry`: nobody did")
    answered_at: Mapped[datetime | None] = mapped_column(comment="When it was answered")
    created_at: Mapped[datetime] = created()
    __table_args__ = (
        one_of("status", QuestionStatus),
        one_of("kind", QuestionKind),
        one_of("on_expiry", ExpiryAction),
        UniqueConstraint("run_id", "key"),
        CheckConstraint(
            "status <> 'ANSWERED' OR (answer IS NOT NULL AND answered_by IS NOT NULL AND answered_at IS NOT NULL)",
            name="answer",
        ),
        Index("idx_question_status_created", "status", "created_at", "id"),
        Index("idx_question_due", "due_at", postgresql_where=sql("status = 'OPEN'")),
        Index("idx_questions_task_id", "task_id", postgresql_where=sql("task_id IS NOT NULL")),
        {"comment": "What runs ask people; answered once"},
    )


class ModelCall(Table):
    """One attempt at a model call: the journal and the ledger in one."""

    __tablename__ = "model_calls"
    id: Mapped[UUID] = row_id()
    tenant_id: Mapped[UUID] = tenant_of_run()
    run_id: Mapped[UUID] = mapped_column(ForeignKey("project_runs.id", ondelete="CASCADE"), comment="Run that pays")
    task_id: Mapped[UUID | None] = mapped_column(comment="Task it is for (no foreign key: the task may commit later)")
    task_key: Mapped[str | None] = mapped_column(comment="Key of that task")
    node: Mapped[str] = mapped_column(comment="Node that asked")
    visit: Mapped[int] = mapped_column(comment="Visit of the node, from the state")
    ordinal: Mapped[int] = mapped_column(comment="Counts the calls of the visit from 1")
    attempt: Mapped[int] = mapped_column(
        comment="Counts the tries of the call from 1, over retries, fallbacks and crashes"
    )
    role: Mapped[str] = mapped_column(comment="Role that asked")
    provider: Mapped[str] = mapped_column(comment="Provider that was called")
    model: Mapped[str] = mapped_column(comment="Model that was asked for")
    status: Mapped[str] = mapped_column(
        comment="reserved: in flight; done: paid; failed: booked or free; released: not sent"
    )
    replayable: Mapped[bool] = mapped_column(
        Boolean, server_default=sql("true"), comment="Whether a done reply answers again after a crash"
    )
    request_hash: Mapped[str] = mapped_column(comment="sha256 of the request without tool observations")
    prompt_hash: Mapped[str] = mapped_column(server_default="", comment="sha256 of the prompt files")
    request: Mapped[dict[str, Any]] = mapped_column(
        comment="What was asked: messages since the previous call of the visit"
    )
    response: Mapped[dict[str, Any] | None] = mapped_column(comment="What was answered")
    error: Mapped[str | None] = mapped_column(comment="Why the attempt failed")
    reserved_tokens: Mapped[int] = mapped_column(BigInteger, comment="Worst case that was held, tokens")
    reserved_usd: Mapped[Decimal] = mapped_column(comment="Worst case that was held, money")
    reserved_seconds: Mapped[Decimal] = mapped_column(
        server_default="0", comment="Longest that was held, where its role has a limit in seconds"
    )
    seconds: Mapped[Decimal] = mapped_column(
        server_default="0", comment="From sending to its end, as its role is charged; none for a played reply"
    )
    tokens_input: Mapped[int] = mapped_column(BigInteger, server_default="0", comment="Billed input tokens")
    tokens_output: Mapped[int] = mapped_column(BigInteger, server_default="0", comment="Billed output tokens")
    tokens_cached: Mapped[int] = mapped_column(BigInteger, server_default="0", comment="Of the input: cached")
    cost_usd: Mapped[Decimal] = mapped_column(server_default="0", comment="Billed money at the price of that moment")
    price_version: Mapped[str] = mapped_column(server_default="", comment="Where the price came from")
    latency_ms: Mapped[int | None] = mapped_column(comment="From sending to the whole answer")
    lease_epoch: Mapped[int] = mapped_column(BigInteger, comment="Fence under which it was made")
    created_at: Mapped[datetime] = created()
    settled_at: Mapped[datetime | None] = mapped_column(comment="When it became done, failed or released")
    __table_args__ = (
        CheckConstraint("status IN ('reserved', 'done', 'failed', 'released')", name="status"),
        one_of("role", Role),
        CheckConstraint("ordinal >= 1 AND attempt >= 1", name="position"),
        CheckConstraint("reserved_tokens >= 0 AND reserved_usd >= 0", name="reserved_floor"),
        CheckConstraint(
            "tokens_input >= 0 AND tokens_output >= 0 AND tokens_cached >= 0 AND cost_usd >= 0", name="billed_floor"
        ),
        CheckConstraint("(status = 'reserved') = (settled_at IS NULL)", name="settled"),
        UniqueConstraint("run_id", "node", "visit", "ordinal", "attempt"),
        Index("idx_call_run_created", "run_id", "created_at", "id"),
        Index("idx_call_reserved", "run_id", "lease_epoch", postgresql_where=sql("status = 'reserved'")),
        Index("idx_model_calls_task_id", "task_id", postgresql_where=sql("task_id IS NOT NULL")),
        {"comment": "Every attempt at a model call: replayed after a crash, and what it cost"},
    )


class Event(Table):
    """The one log; `seq` counts from 1 without gaps in each run."""

    __tablename__ = "events"
    event_id: Mapped[UUID] = mapped_column(primary_key=True, server_default=sql("uuidv7()"), comment="Id of the event")
    tenant_id: Mapped[UUID] = tenant_of_run()
    project_id: Mapped[UUID | None] = mapped_column(comment="Project it is about")
    run_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("project_runs.id", ondelete="CASCADE"), comment="Run it is about"
    )
    seq: Mapped[int | None] = mapped_column(BigInteger, comment="Number within the run, from 1, without gaps")
    type: Mapped[str] = mapped_column(comment="noun.past_tense, see domain/event.py")
    version: Mapped[int] = mapped_column(SmallInteger, server_default="1", comment="Version of the payload's schema")
    occurred_at: Mapped[datetime] = mapped_column(
        server_default=sql("clock_timestamp()"), comment="When it happened (UTC)"
    )
    source: Mapped[str] = mapped_column(comment="Part that tells: api, engine, cli, …")
    instance: Mapped[str] = mapped_column(server_default="", comment="Process that tells: host/pid")
    correlation_id: Mapped[str] = mapped_column(server_default="", comment="Request that led to it")
    causation_id: Mapped[UUID | None] = mapped_column(comment="Event that led to it")
    payload: Mapped[dict[str, Any]] = mapped_column(server_default=sql("'{}'"), comment="Facts of the event")
    __table_args__ = (
        UniqueConstraint("run_id", "seq"),
        CheckConstraint("(run_id IS NULL) = (seq IS NULL)", name="seq"),
        Index("idx_event_tenant_occurred", "tenant_id", "occurred_at", "event_id"),
        Index("idx_event_project", "project_id", postgresql_where=sql("run_id IS NULL")),
        {"comment": "The one log: timeline, live stream, audit and outbox are read from it; rows are never changed"},
    )


class DeadLetter(Table):
    """What could not be executed or delivered, replayable."""

    __tablename__ = "dead_letters"
    id: Mapped[UUID] = row_id()
    tenant_id: Mapped[UUID] = tenant()
    run_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("project_runs.id", ondelete="CASCADE"), index=True, comment="Run it is about"
    )
    kind: Mapped[str] = mapped_column(comment="run or delivery")
    node: Mapped[str | None] = mapped_column(comment="Node that could not be executed")
    lease_epoch: Mapped[int | None] = mapped_column(BigInteger, comment="Fence of the last claim")
    error: Mapped[str] = mapped_column(comment="Last error, in a sentence")
    payload: Mapped[dict[str, Any]] = mapped_column(server_default=sql("'{}'"), comment="What is needed to do it again")
    replayed_at: Mapped[datetime | None] = mapped_column(comment="When it was tried again")
    created_at: Mapped[datetime] = created()
    __table_args__ = (
        CheckConstraint("kind IN ('run', 'delivery')", name="kind"),
        {"comment": "What could not be executed or delivered; can be replayed"},
    )


class IdempotencyKey(Table):
    """The answer to a state-changing POST, given again for the same key."""

    __tablename__ = "idempotency_keys"
    tenant_id: Mapped[UUID] = tenant(index=False)
    key: Mapped[str] = mapped_column(comment="Sent by the client")
    request_hash: Mapped[str] = mapped_column(comment="sha256 of method, path and body")
    status: Mapped[int | None] = mapped_column(
        SmallInteger, comment="HTTP status of the answer; null while it is worked on"
    )
    headers: Mapped[dict[str, Any]] = mapped_column(
        server_default=sql("'{}'"), comment="Headers of the answer that count"
    )
    body: Mapped[bytes | None] = mapped_column(comment="Body of the answer")
    created_at: Mapped[datetime] = created()
    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "key"),
        Index("idx_idempotency_created", "created_at"),
        {"comment": "Answers to POSTs by Idempotency-Key; removed after a day"},
    )
