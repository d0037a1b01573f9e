"""Copies what a run was at one of its checkpoints into another run: the checkpoint itself, and the rows of that moment.

What was true at a checkpoint is read from the log: every event up to the commit that wrote it counts, none after it.
Ids follow from the new run, as if its own nodes had made the rows; keys, commits and texts stay. The statements read
the old run only and are parts of the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db.checkpoint_tables import Checkpoint
from backend.adapters.db.checkpointer.codec import dumps, loads
from backend.domain.ids import task_id

_BRANCH = "branch:to:"
_SENDS = "__pregel_tasks"

# Checkpoints that may share a transaction say which event was their last. The events of others are written by their
# statement or by one after it in the same transaction: the system column xmin tells, and where a restored dump has made
# it one for all, the instants do.
_CUT = text(
    "SELECT coalesce(max(c.event_seq), max(e.seq), 0) FROM checkpoints c LEFT JOIN events e ON c.event_seq IS NULL"
    " AND e.run_id = :run AND (e.occurred_at <= c.created_at"
    " OR (e.xmin = c.xmin AND e.occurred_at < c.created_at + interval '5 seconds'))"
    " WHERE c.thread_id = :run AND c.namespace = '' AND c.checkpoint_id = :checkpoint"
)
_TASKS = text("""
INSERT INTO tasks (id, tenant_id, run_id, parent_task_id, key, title, description, kind, status, assigned_role,
    priority, iteration, acceptance_criteria, branch, commit)
SELECT ids.copy, t.tenant_id, :fork, above.copy, t.key, t.title, t.description, t.kind,
    coalesce(moved.status, made.payload ->> 'status', 'CREATED'), t.assigned_role, t.priority,
    coalesce(moved.iteration, 0), t.acceptance_criteria, NULL, worked.commit
FROM tasks t
JOIN unnest(CAST(:old AS uuid[]), CAST(:new AS uuid[])) AS ids (old, copy) ON ids.old = t.id
LEFT JOIN unnest(CAST(:old AS uuid[]), CAST(:new AS uuid[])) AS above (old, copy) ON above.old = t.parent_task_id
JOIN LATERAL (SELECT payload FROM events e WHERE e.run_id = :run AND e.type = 'task.created' AND e.seq <= :cut
    AND e.payload ->> 'key' = t.key ORDER BY seq LIMIT 1) made ON true
LEFT JOIN LATERAL (SELECT payload ->> 'to' AS status, CAST(payload ->> 'iteration' AS int) AS iteration FROM events e
    WHERE e.run_id = :run AND e.type = 'task.moved' AND e.seq <= :cut AND e.payload ->> 'key' = t.key
    ORDER BY seq DESC LIMIT 1) moved ON true
LEFT JOIN LATERAL (SELECT payload ->> 'commit' AS commit FROM events e
    WHERE e.run_id = :run AND e.type = 'commit.created' AND e.seq <= :cut AND e.payload ->> 'task' = t.key
    ORDER BY seq DESC LIMIT 1) worked ON true
WHERE t.run_id = :run ORDER BY t.created_at, t.id
""")
_KNOWN = text(
    "SELECT t.id, t.key FROM tasks t WHERE t.run_id = :run AND EXISTS (SELECT FROM events e WHERE e.run_id = :run"
    " AND e.type = 'task.created' AND e.seq <= :cut AND e.payload ->> 'key' = t.key) ORDER BY t.created_at, t.id"
)
_DEPENDENCIES = text(
    "INSERT INTO task_dependencies (task_id, depends_on_task_id) SELECT a.copy, b.copy FROM task_dependencies d"
    " JOIN unnest(CAST(:old AS uuid[]), CAST(:new AS uuid[])) AS a (old, copy) ON a.old = d.task_id"
    " JOIN unnest(CAST(:old AS uuid[]), CAST(:new AS uuid[])) AS b (old, copy) ON b.old = d.depends_on_task_id"
)
_FINDINGS = text("""
INSERT INTO findings (tenant_id, run_id, task_id, source, scanner, rule, severity, path, line, message, fingerprint,
    status, waived_by, waived_reason, waived_until)
SELECT f.tenant_id, :fork, ids.copy, f.source, f.scanner, f.rule, seen.payload ->> 'severity', seen.payload ->> 'path',
    CAST(seen.payload ->> 'line' AS int), f.message, f.fingerprint,
    CASE WHEN let.pass THEN f.status WHEN closed.so THEN 'fixed' ELSE seen.payload ->> 'status' END,
    CASE WHEN let.pass THEN f.waived_by END, CASE WHEN let.pass THEN f.waived_reason END,
    CASE WHEN let.pass THEN f.waived_until END
FROM findings f
LEFT JOIN unnest(CAST(:old AS uuid[]), CAST(:new AS uuid[])) AS ids (old, copy) ON ids.old = f.task_id
JOIN LATERAL (SELECT seq, payload FROM events e WHERE e.run_id = :run AND e.type = 'finding.recorded' AND e.seq <= :cut
    AND e.payload ->> 'fingerprint' = f.fingerprint ORDER BY seq DESC LIMIT 1) seen ON true
CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM events e WHERE e.run_id = :run AND e.type = 'findings.closed'
    AND e.seq > seen.seq AND e.seq <= :cut AND e.payload -> 'fingerprints' ? f.fingerprint) AS so) closed
CROSS JOIN LATERAL (SELECT f.status = 'waived' AND EXISTS (SELECT FROM events e WHERE e.run_id = :run
    AND e.type = 'finding.waived' AND e.seq <= :cut AND e.payload ->> 'finding' = CAST(f.id AS text)) AS pass) let
WHERE f.run_id = :run ORDER BY f.created_at, f.id
""")
_QUESTIONS = text("""
INSERT INTO questions (tenant_id, run_id, task_id, key, kind, asked_by, text, options, "default", due_at, on_expiry,
    status, answer, answered_by, answered_at)
SELECT q.tenant_id, :fork, ids.copy, q.key, q.kind, q.asked_by, q.text, q.options, q."default",
    CASE WHEN done.so THEN q.due_at ELSE clock_timestamp() + (q.due_at - q.created_at) END, q.on_expiry,
    CASE WHEN done.so THEN q.status ELSE 'OPEN' END, CASE WHEN done.so THEN q.answer END,
    CASE WHEN done.so THEN q.answered_by END, CASE WHEN done.so THEN q.answered_at END
FROM questions q
LEFT JOIN unnest(CAST(:old AS uuid[]), CAST(:new AS uuid[])) AS ids (old, copy) ON ids.old = q.task_id
CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM events e WHERE e.run_id = :run AND e.seq <= :cut
    AND e.type IN ('question.answered', 'question.expired') AND e.payload ->> 'key' = q.key) AS so) done
WHERE q.run_id = :run AND q.kind <> 'budget' AND q.key NOT LIKE 'interrupt/%' AND EXISTS (SELECT FROM events e
    WHERE e.run_id = :run AND e.type = 'question.asked' AND e.seq <= :cut AND e.payload ->> 'key' = q.key)
ORDER BY q.created_at, q.id
""")
_ARTIFACTS = text("""
INSERT INTO artifacts (tenant_id, run_id, task_id, kind, path, media_type, size, sha256, commit)
SELECT a.tenant_id, :fork, ids.copy, a.kind, a.path, a.media_type, a.size, a.sha256, a.commit
FROM artifacts a LEFT JOIN unnest(CAST(:old AS uuid[]), CAST(:new AS uuid[])) AS ids (old, copy) ON ids.old = a.task_id
WHERE a.run_id = :run AND EXISTS (SELECT FROM events e WHERE e.run_id = :run AND e.type = 'artifact.recorded'
    AND e.seq <= :cut AND e.payload ->> 'id' = CAST(a.id AS text)) ORDER BY a.created_at, a.id
""")


@dataclass(frozen=True, slots=True)
class Kept:
    """A checkpoint of the graph itself, whole: the values of all its channels."""

    checkpoint_id: UUID
    metadata: Mapping[str, Any]
    state: Mapping[str, Any]
    values: Mapping[str, Any]

    @property
    def following(self) -> list[str]:
        """The nodes that run next, as far as edges and sends tell."""
        branches = [name.removeprefix(_BRANCH) for name in self.values if name.startswith(_BRANCH)]
        return sorted({*branches, *(send.node for send in self.values.get(_SENDS, ()))})


async def ids_of(session: AsyncSession, run_id: UUID) -> list[UUID]:
    """The checkpoints of a run that are kept, newest first."""
    query = select(Checkpoint.checkpoint_id).where(Checkpoint.thread_id == run_id, Checkpoint.namespace == "")
    return list(await session.scalars(query.order_by(Checkpoint.number.desc())))


async def checkpoint(session: AsyncSession, run_id: UUID, checkpoint_id: UUID) -> Kept | None:
    """A checkpoint with the values of its channels, each from the row that holds it; None where it is not kept."""
    here = (Checkpoint.thread_id == run_id, Checkpoint.namespace == "")
    row = await session.scalar(select(Checkpoint).where(*here, Checkpoint.checkpoint_id == checkpoint_id))
    if row is None:
        return None
    state = loads(row.state)
    sources: dict[str, int] = state["sources"]
    rows = await session.execute(
        select(Checkpoint.number, Checkpoint.channel_values).where(*here, Checkpoint.number.in_(set(sources.values())))
    )
    held = {number: loads(values) for number, values in rows}
    values = {channel: held[number][channel] for channel, number in sources.items()}
    return Kept(row.checkpoint_id, row.metadata_, state, values)


async def newest_value(session: AsyncSession, run_id: UUID, channel: str) -> Any:
    """The value that a run wrote last to a channel; None where it wrote none."""
    query = select(Checkpoint.channel_values).where(Checkpoint.thread_id == run_id, Checkpoint.namespace == "")
    for values in await session.scalars(query.order_by(Checkpoint.number.desc())):
        found = loads(values).get(channel)
        if found is not None:
            return found
    return None


async def copy_rows(session: AsyncSession, run_id: UUID, checkpoint_id: UUID, fork: UUID) -> None:
    """Copy tasks, findings, questions and artifacts as they were when the checkpoint was written.

    A question that was not answered then is open again. Comments, calls and events stay with the run that made them.
    """
    cut = await session.scalar(_CUT, {"run": run_id, "checkpoint": checkpoint_id})
    known = (await session.execute(_KNOWN, {"run": run_id, "cut": cut})).all()
    values = {"run": run_id, "fork": fork, "cut": cut, "old": [row.id for row in known]}
    values["new"] = [task_id(fork, row.key) for row in known]
    for statement in (_TASKS, _DEPENDENCIES, _FINDINGS, _QUESTIONS, _ARTIFACTS):
        named = {name: values[name] for name in statement.compile().params}
        await session.execute(statement, named)


async def copy_checkpoint(session: AsyncSession, kept: Kept, fork: UUID) -> None:
    """Make a checkpoint the first of another run; called last, so that the rows of the fork are older."""
    state = {**kept.state, "sources": dict.fromkeys(kept.values, 1)}
    where = "The checkpoint"
    session.add(
        Checkpoint(
            thread_id=fork,
            namespace="",
            number=1,
            checkpoint_id=kept.checkpoint_id,
            parent_id=None,
            metadata_={**kept.metadata, "run_id": str(fork), "thread_id": str(fork)}
            if "run_id" in kept.metadata
            else dict(kept.metadata),
            state=dumps(state, where=where),
            channel_values=dumps(dict(kept.values), where=where),
        )
    )
    await session.flush()
