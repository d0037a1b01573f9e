"""The table of budgets."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from backend.adapters.db.columns import Table, created, row_id, tenant


class Budget(Table):
    """Limits beside the run's own: of a role in a run, a project, a tenant's month."""

    __tablename__ = "budgets"
    id: Mapped[UUID] = row_id()
    tenant_id: Mapped[UUID] = tenant()
    scope: Mapped[str] = mapped_column(comment="run_role, project or tenant_month")
    owner_id: Mapped[UUID] = mapped_column(comment="Run, project or tenant")
    name: Mapped[str] = mapped_column(comment="Role, `all`, or the month as 2026-11")
    limit_tokens: Mapped[int | None] = mapped_column(BigInteger, comment="Most tokens; null: no limit")
    limit_usd: Mapped[Decimal | None] = mapped_column(comment="Most money; null: no limit")
    limit_seconds: Mapped[int | None] = mapped_column(
        comment="Most seconds of calls (role) or of work (project, month); null: no limit"
    )
    spent_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0", comment="Billed tokens")
    spent_usd: Mapped[Decimal] = mapped_column(server_default="0", comment="Billed money")
    reserved_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0", comment="Held for calls in flight")
    reserved_usd: Mapped[Decimal] = mapped_column(server_default="0", comment="Held for calls in flight")
    spent_seconds: Mapped[Decimal] = mapped_column(server_default="0", comment="Seconds of calls or of work")
    reserved_seconds: Mapped[Decimal] = mapped_column(
        server_default="0", comment="Held for calls in flight, or granted to runs that work"
    )
    told_seconds: Mapped[Decimal] = mapped_column(
        server_default="0", comment="Seconds of work up to which warnings were told"
    )
    created_at: Mapped[datetime] = created()
    __table_args__ = (
        UniqueConstraint("scope", "owner_id", "name"),
        CheckConstraint("scope IN ('run_role', 'project', 'tenant_month')", name="scope"),
        CheckConstraint("reserved_tokens >= 0 AND reserved_usd >= 0", name="reserved_floor"),
        CheckConstraint("reserved_tokens <= limit_tokens AND reserved_usd <= limit_usd", name="reserved_ceiling"),
        CheckConstraint("spent_tokens >= 0 AND spent_usd >= 0", name="spent_floor"),
        CheckConstraint("limit_tokens > 0 AND limit_usd > 0", name="limits"),
        CheckConstraint(
            "limit_seconds > 0 AND spent_seconds >= 0 AND reserved_seconds >= 0 AND reserved_seconds <= limit_seconds",
            name="seconds",
        ),
        {"comment": "Limits beside the run's own, with what is spent and held"},
    )
