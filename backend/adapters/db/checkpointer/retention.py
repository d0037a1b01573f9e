"""Removes, thins and copies checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from backend.adapters.db.checkpointer.codec import dumps, loads
from backend.adapters.db.checkpointer.reading import LISTED, values_of
from backend.adapters.db.checkpointer.sending import persist

_BY_RUN = (
    "WITH gone AS (DELETE FROM checkpoints WHERE metadata ->> 'run_id' = ANY ($1)"
    " RETURNING thread_id, namespace, checkpoint_id)"
    " DELETE FROM checkpoint_writes w USING gone g"
    " WHERE (w.thread_id, w.namespace, w.checkpoint_id) = (g.thread_id, g.namespace, g.checkpoint_id)"
)
_COPY_CHECKPOINTS = (
    "INSERT INTO checkpoints (thread_id, namespace, number, checkpoint_id, parent_id, metadata, state, channel_values,"
    " created_at) SELECT $2, namespace, number, checkpoint_id, parent_id, metadata, state, channel_values, created_at"
    " FROM checkpoints WHERE thread_id = $1 ON CONFLICT DO NOTHING"
)
_COPY_WRITES = (
    "INSERT INTO checkpoint_writes (thread_id, namespace, checkpoint_id, task_id, idx, task_path, channel, value)"
    " SELECT $2, namespace, checkpoint_id, task_id, idx, task_path, channel, value"
    " FROM checkpoint_writes WHERE thread_id = $1 ON CONFLICT DO NOTHING"
)
_HEADS = (
    f"{LISTED} WHERE c.thread_id = $1 AND c.number = (SELECT max(o.number) FROM checkpoints o"
    " WHERE o.thread_id = c.thread_id AND o.namespace = c.namespace) FOR UPDATE"
)
_THIN = (
    "DELETE FROM checkpoint_writes w USING project_runs r WHERE r.id = $1 AND w.thread_id = r.id"
    " AND r.ended_at IS NOT NULL AND w.checkpoint_id IS DISTINCT FROM r.head_checkpoint_id"
)


async def delete_threads(pool: Any, threads: Sequence[UUID]) -> None:
    """Remove everything of the threads."""
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("DELETE FROM checkpoint_writes WHERE thread_id = ANY ($1)", threads)
        await connection.execute("DELETE FROM checkpoints WHERE thread_id = ANY ($1)", threads)


async def delete_for_runs(pool: Any, run_ids: Sequence[str]) -> None:
    """Remove the checkpoints whose metadata name one of the runs.

    Values that later checkpoints of other runs still need are moved to those first.
    """
    async with pool.acquire() as connection, connection.transaction():
        kept = await connection.fetch(
            f"{LISTED} WHERE c.metadata ->> 'run_id' <> ALL ($1) AND c.thread_id IN"  # noqa: S608 - constant text
            " (SELECT thread_id FROM checkpoints WHERE metadata ->> 'run_id' = ANY ($1)) FOR UPDATE",
            run_ids,
        )
        for row in kept:
            await _make_whole(connection, row)
        await connection.execute(_BY_RUN, run_ids)


async def copy_thread(pool: Any, source: UUID, target: UUID) -> None:
    """Copy all checkpoints and pending writes of a thread."""
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(_COPY_CHECKPOINTS, source, target)
        await connection.execute(_COPY_WRITES, source, target)


async def keep_latest(pool: Any, thread: UUID) -> None:
    """Remove all but the latest checkpoint of each namespace, which is made whole first."""
    async with pool.acquire() as connection, connection.transaction():
        for head in await connection.fetch(_HEADS, thread):
            await _make_whole(connection, head)
            key = (head["thread_id"], head["namespace"])
            await connection.execute(
                "DELETE FROM checkpoints WHERE thread_id = $1 AND namespace = $2 AND number <> $3", *key, head["number"]
            )
            await connection.execute(
                "UPDATE checkpoints SET parent_id = NULL WHERE thread_id = $1 AND namespace = $2", *key
            )
            await connection.execute(
                "DELETE FROM checkpoint_writes WHERE thread_id = $1 AND namespace = $2 AND checkpoint_id <> $3",
                *key,
                head["checkpoint_id"],
            )


async def thin(pool: Any, run_id: UUID) -> None:
    """Remove what a fork of an ended run never needs: writes of supersteps that are finished.

    A run that somebody retried meanwhile keeps them: those of its subgraphs, too, belong to supersteps on their way.
    """
    await persist(lambda: pool.execute(_THIN, run_id))


async def _make_whole(connection: Any, row: Mapping[str, Any]) -> None:
    state = loads(row["state"])
    values = await values_of(connection, row, state["sources"])
    state["sources"] = dict.fromkeys(values, row["number"])
    await connection.execute(
        "UPDATE checkpoints SET state = $4, channel_values = $5"
        " WHERE thread_id = $1 AND namespace = $2 AND number = $3",
        row["thread_id"],
        row["namespace"],
        row["number"],
        dumps(state, where="The checkpoint"),
        dumps(values, where="The checkpoint"),
    )
