"""The tables of the checkpointer: what LangGraph needs to resume a run, as JSON text that people can read."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, PrimaryKeyConstraint, Text
from sqlalchemy import text as sql
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from backend.adapters.db.tables import Table


class Checkpoint(Table):
    """The state of a run after a superstep: versions of all channels, values of those that changed."""

    __tablename__ = "checkpoints"
    thread_id: Mapped[UUID] = mapped_column(comment="The run")
    namespace: Mapped[str] = mapped_column(Text, comment="Empty for the graph itself, else the subgraph's path")
    number: Mapped[int] = mapped_column(comment="Counts from 1 within the namespace: the order they were written in")
    checkpoint_id: Mapped[UUID] = mapped_column(comment="LangGraph's id of the checkpoint")
    parent_id: Mapped[UUID | None] = mapped_column(comment="Checkpoint it follows; null: the first")
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata", JSONB, comment="Source, step and parents")
    state: Mapped[str] = mapped_column(
        Text, comment="JSON: channel versions, versions seen by nodes, and the number of the row that holds each value"
    )
    channel_values: Mapped[str] = mapped_column(Text, comment="JSON: values of the channels that changed")
    event_seq: Mapped[int | None] = mapped_column(
        BigInteger, comment="The run's last event when it was written; null: the events of its transaction tell"
    )
    created_at: Mapped[datetime] = mapped_column(server_default=sql("clock_timestamp()"), comment="When (UTC)")
    __table_args__ = (
        PrimaryKeyConstraint("thread_id", "namespace", "number"),
        CheckConstraint("number >= 1", name="number"),
        {"comment": "What a run resumes from; one row a superstep, written in the transaction of its effects"},
    )


class CheckpointWrite(Table):
    """What one finished task of an unfinished superstep wrote, so that it does not run again."""

    __tablename__ = "checkpoint_writes"
    thread_id: Mapped[UUID] = mapped_column(comment="The run")
    namespace: Mapped[str] = mapped_column(Text, comment="Namespace of the checkpoint")
    checkpoint_id: Mapped[UUID] = mapped_column(comment="Checkpoint that the superstep started from")
    task_id: Mapped[UUID] = mapped_column(comment="LangGraph's id of the task")
    idx: Mapped[int] = mapped_column(comment="Place of the write; negative for errors, interrupts and answers")
    task_path: Mapped[str] = mapped_column(Text, server_default="", comment="Place of the task in the superstep")
    channel: Mapped[str] = mapped_column(Text, comment="Channel that was written")
    value: Mapped[str] = mapped_column(Text, comment="JSON")
    __table_args__ = (
        PrimaryKeyConstraint("thread_id", "namespace", "checkpoint_id", "task_id", "idx"),
        {"comment": "Results of tasks whose superstep is not finished"},
    )
