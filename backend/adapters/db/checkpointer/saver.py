"""The saver: LangGraph's checkpoints, and the effects of the nodes they commit, in one transaction each.

LangGraph hands over the writes of each finished task (`aput_writes`) and, when all tasks of a superstep are done, the
checkpoint (`aput`). Writes wait a few turns of the event loop for the checkpoint that makes them superfluous: the last
task of a superstep commits with its checkpoint, in one statement; tasks that finish earlier commit on their own.

`ahead` lets the next nodes begin while a checkpoint is on its way to the disk. Commits keep their order all the same,
and whatever touches the world in such a node waits for `settled` first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from typing import Any
from uuid import UUID

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    get_serializable_checkpoint_metadata,
)
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT
from langgraph.types import Interrupt

from backend.adapters.crashes import crash_point
from backend.adapters.db import commit
from backend.adapters.db.checkpointer import reading, retention
from backend.adapters.db.checkpointer.codec import dumps
from backend.adapters.db.checkpointer.grouping import GroupCommit
from backend.adapters.db.checkpointer.line import Line, Write
from backend.adapters.db.checkpointer.sending import LeaseLost, Sent, fetch, persist, send
from backend.adapters.db.checkpointer.tail import Tail, as_uuid, follow, next_nodes, node_name, place
from backend.adapters.db.commit import Fence, PendingWrites
from backend.adapters.db.projection import Finished, Projection, Rows
from backend.domain.ports import Visit
from backend.errors import Conflict, Invalid

EFFECTS = "effects"
"""The channel whose writes become rows and are never stored."""
_TURNS = 6
"""Turns of the event loop between a task's end and the checkpoint of its superstep, with some to spare."""
_TURNS_OF_A_COMMIT = 3
"""Turns of the event loop until a commit that was handed over is on its way."""
_INPUT = "__start__"
_TRIES = 4
_ERROR_HANDLER = "__error_source_node__"
_DURABILITY = "__pregel_durability"


@dataclass(slots=True)
class _Waiting:
    """A finished task that waits for its superstep's checkpoint."""

    visit: Finished
    taken: bool = False


@dataclass(slots=True)
class _Superstep:
    """The tasks of a superstep that are finished and not committed yet."""

    waiting: list[_Waiting] = field(default_factory=list)
    committing: list[asyncio.Future[None]] = field(default_factory=list)


class RunSaver(BaseCheckpointSaver[int]):
    """Checkpoints of one run under its lease's fence; without a fence, of any thread (forks, tests, reading).

    `visits` maps LangGraph's task ids to the visits whose nodes took a seat; `holding` says that the run will hold at
    the next node edge; `begun` is False when the run is known to have no checkpoint yet; `committed` is called after
    each commit, `interrupted` when a node waits for an answer; `group` is shared with the other runs of the process.
    Each commit raises `LeaseLost` when the run has another owner, `Invalid` when state or effects cannot be stored,
    `Unavailable` when the database stays away.
    """

    def __init__(
        self,
        pool: Any,
        fence: Fence | None = None,
        *,
        visits: Mapping[str, Visit] | None = None,
        holding: Callable[[], bool] = lambda: False,
        committed: Callable[[Rows], None] = lambda rows: None,
        interrupted: Callable[[Sequence[Interrupt]], None] = lambda interrupts: None,
        instance: str = "",
        begun: bool = True,
        group: GroupCommit | None = None,
    ) -> None:
        # Not `super().__init__()`: it looks at each saver's serializer, which is used by none.
        self._group = group if group is not None else GroupCommit(pool)
        self._pool = pool
        self._fence = fence
        self._visits = visits if visits is not None else {}
        self._holding = holding
        self._committed = committed
        self._interrupted = interrupted
        self._instance = instance
        self._begun = begun
        self._tails: dict[tuple[str, str], Tail] = {}
        self._supersteps: dict[tuple[str, str], _Superstep] = {}
        self._inner_effects: dict[str, list[Any]] = {}
        self._ahead = False
        self._line = Line(self._group, instance)

    @asynccontextmanager
    async def ahead(self) -> AsyncIterator[None]:
        """Let nodes begin before the checkpoint that they follow is durable; at the end everything is.

        Raises what a commit raised that nobody waited for. A block that is cancelled takes along what was not sent yet.
        """
        self._ahead = True
        try:
            try:
                yield
            except Exception:
                # What went wrong first is told: the node that failed may have begun after a commit that failed.
                await self.settled()
                raise
            await self.settled()
        except asyncio.CancelledError:
            await self._line.take_back()
            raise
        finally:
            self._ahead = False

    async def settled(self) -> None:
        """Wait until all that was handed over for commit is durable; raises as its commits do."""
        await self._line.settled()

    # --- writing ---------------------------------------------------------------------------------------------------

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Commit a finished task: with its superstep's checkpoint if that comes at once, else on its own.

        Of one that its checkpoint takes along, `aput` tells how it went.
        """
        self._check_durability(config)
        thread, namespace, checkpoint_id = place(config)
        channels = {channel for channel, _ in writes}
        special = channels <= WRITES_IDX_MAP.keys()
        # A task that failed without a handler for its error runs again, so nothing of it is kept.
        if self._fence is not None and ERROR in channels and _ERROR_HANDLER not in channels:
            return
        if self._fence is None or special:
            await self._commit_writes(config, writes, task_id, task_path, Rows())
            for channel, value in writes:
                if channel == INTERRUPT:
                    self._interrupted(value)
            return
        visit = self._finished(thread, namespace, task_id, task_path, writes)
        if visit.node == _INPUT and not namespace:
            return
        waiting = _Waiting(visit)
        superstep = self._supersteps.setdefault((namespace, checkpoint_id or ""), _Superstep())
        superstep.waiting.append(waiting)
        for _ in range(_TURNS):
            await asyncio.sleep(0)
            if waiting.taken:
                return
        superstep.waiting.remove(waiting)
        projection = Projection(self._fence.run_id)
        projection.add(visit)
        superstep.committing.append(
            asyncio.ensure_future(
                self._commit_writes(config, writes, task_id, task_path, projection.rows, node=visit.node)
            )
        )
        await superstep.committing[-1]

    async def _commit_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str,
        rows: Rows,
        *,
        node: str | None = None,
    ) -> None:
        thread, namespace, checkpoint_id = place(config)
        await self.settled()
        await self._store_waiting(thread, namespace)
        pending = PendingWrites(
            as_uuid(thread, "thread_id"),
            namespace,
            as_uuid(checkpoint_id, "checkpoint_id"),
            as_uuid(task_id, "task id"),
            task_path,
            special=all(channel in WRITES_IDX_MAP for channel, _ in writes),
        )
        for position, (channel, value) in enumerate(writes):
            # An effects write stays as an empty one: it marks the task as finished, and its rows are written already.
            kept = [] if channel == EFFECTS and self._fence is not None else value
            pending.idx.append(WRITES_IDX_MAP.get(channel, position))
            pending.channels.append(channel)
            pending.values.append(dumps(kept, where=f"The channel {channel}"))
        statement = commit.save_writes(pending, self._fence, rows, node=node, instance=self._instance)
        crash_point("writes")
        await self._send(statement, rows)
        crash_point("written")

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Commit a finished superstep: its checkpoint, and the tasks that waited for it."""
        self._check_durability(config)
        thread, namespace, parent = place(config)
        superstep = self._supersteps.pop((namespace, parent or ""), None) or _Superstep()
        for one in superstep.waiting:
            one.taken = True
        # A checkpoint says that all tasks of its superstep are done, so their own commits come first.
        if superstep.committing:
            await asyncio.gather(*superstep.committing)
        visits = [one.visit for one in superstep.waiting]
        await self._commit_checkpoint(config, checkpoint, metadata, new_versions, visits)
        written: RunnableConfig = reading.config_of(thread, namespace, checkpoint["id"])
        return written

    async def _commit_checkpoint(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
        visits: Sequence[Finished],
    ) -> None:
        thread, namespace, parent = place(config)
        # What the config says of a driven run, its row says better.
        said = metadata if self._fence else get_serializable_checkpoint_metadata(config, metadata)
        for _ in range(_TRIES):
            tail = await self._tail(thread, namespace, parent)
            following = follow(tail, checkpoint, new_versions, said, leave_out=EFFECTS if self._fence else None)
            if self._may_wait(namespace, metadata, visits, tail):
                self._tails[(thread, namespace)] = following
                return
            rows = self._project(visits, checkpoint, new_versions)
            # No node begins after a question or after the end of a run.
            holds = rows.questions or (rows.end and next_nodes(checkpoint, new_versions))
            if self._ahead and not namespace and not holds:
                await self._hand_over(following, visits, rows)
                return
            if await self._store(following, visits, rows):
                return
            self._tails.pop((thread, namespace), None)
        raise _written_elsewhere(thread)

    async def _hand_over(self, tail: Tail, visits: Sequence[Finished], rows: Rows) -> None:
        """Have the row of a checkpoint leave right behind the one before; returns when that one is durable."""
        row, following = self._row(tail, visits, rows)

        async def by_itself() -> None:
            if not await self._write(row, visits, rows):
                raise _written_elsewhere(tail.thread)

        turn = self._line.add(Write(following, by_itself, partial(self._written, rows)))
        self._keep(tail)
        if turn is not None:
            await turn
            return
        # The commit sets off before LangGraph goes on: that takes as long as a third of the commit.
        for _ in range(_TURNS_OF_A_COMMIT):
            await asyncio.sleep(0)

    async def _store(self, tail: Tail, visits: Sequence[Finished], rows: Rows) -> bool:
        """Write the row of a checkpoint; False when another one has its place."""
        row, following = self._row(tail, visits, rows)
        await self.settled()
        crash_point("checkpoint")
        if following is not None and await self._group.commit(following, instance=self._instance):
            self._written(rows)
        elif not await self._write(row, visits, rows):
            return False
        self._keep(tail)
        return True

    def _keep(self, tail: Tail) -> None:
        tail.stored, tail.held, self._begun = True, {}, True
        self._tails[(tail.thread, tail.namespace)] = tail

    def _row(
        self, tail: Tail, visits: Sequence[Finished], rows: Rows
    ) -> tuple[commit.CheckpointRow, commit.Next | None]:
        """The row of a checkpoint, made before its turn comes, and how it goes with other runs' if it may."""
        row = tail.row()
        return row, commit.Next.of(row, self._fence, rows, _node(visits, rows))

    async def _write(self, row: commit.CheckpointRow, visits: Sequence[Finished], rows: Rows) -> bool:
        """Write a checkpoint by itself; False when another one has its place."""
        node = _node(visits, rows)
        statement = commit.save_checkpoint(row, self._fence, rows, node=node, instance=self._instance)
        sent = await self._send(statement, rows)
        crash_point("committed")
        return sent.fresh or await self._stored_id(row) == row.checkpoint_id

    def _written(self, rows: Rows) -> None:
        self._committed(rows)
        crash_point("committed")

    def _may_wait(self, namespace: str, metadata: CheckpointMetadata, visits: Sequence[Finished], tail: Tail) -> bool:
        """Whether nothing would be lost with this checkpoint: before the first node, the input says it all."""
        if self._fence is None or namespace or (tail.stored and tail.checkpoint_id is not None):
            return False
        return metadata.get("source") == "input" or all(visit.node == _INPUT for visit in visits)

    async def _store_waiting(self, thread: str, namespace: str) -> None:
        """Write the checkpoint that could wait so far, because writes are about to point at it."""
        tail = self._tails.get((thread, namespace))
        if tail is not None and not tail.stored and not await self._store(tail, (), Rows()):
            raise LeaseLost("Another worker wrote the first checkpoint of the run.")

    def _project(self, visits: Sequence[Finished], checkpoint: Checkpoint, new_versions: ChannelVersions) -> Rows:
        if self._fence is None:
            return Rows()
        projection = Projection(self._fence.run_id)
        projection.rows.ends_superstep = True
        for visit in visits:
            if visit.node != _INPUT:
                projection.add(visit)
        if not (projection.rows.end or projection.rows.questions or self._holding()):
            projection.started(next_nodes(checkpoint, new_versions))
        return projection.rows

    def _rounds(self, rows: Rows) -> list[commit.Statement]:
        if self._fence is None:
            return []
        return [commit.save_rows(self._fence, Rows(moves=[moves]), instance=self._instance) for moves in rows.moves[1:]]

    async def _send(self, statement: commit.Statement, rows: Rows) -> Sent:
        sent = await send(self._pool, [statement, *self._rounds(rows)])
        if not sent.fenced:
            raise LeaseLost("The run has another owner.")
        self._committed(rows)
        return sent

    async def _stored_id(self, row: commit.CheckpointRow) -> UUID | None:
        found = await fetch(self._pool, reading.ID_OF, (row.thread_id, row.namespace, row.number))
        return found["checkpoint_id"] if found else None

    def _finished(
        self, thread: str, namespace: str, task_id: str, task_path: str, writes: Sequence[tuple[str, Any]]
    ) -> Finished:
        visit = self._visits.get(task_id)
        effects = [effect for channel, value in writes if channel == EFFECTS for effect in value or ()]
        # A subgraph hands its last effects up as its own result; they are committed already.
        if effects and effects in self._inner_effects.get(task_id, ()):
            effects = []
        if namespace and effects:
            self._inner_effects.setdefault(namespace.rpartition(":")[2], []).append(effects)
        if visit is not None:
            return Finished(visit.node, task_id, effects, visit.number, visit.task_key)
        tail = self._tails.get((thread, namespace))
        return Finished(node_name(task_path, tail.sends if tail else ()), task_id, effects)

    def _check_durability(self, config: RunnableConfig) -> None:
        if self._fence is not None and config["configurable"].get(_DURABILITY) != "sync":
            raise Invalid('A run is driven with durability="sync" only; every other mode repeats or loses nodes.')

    # --- reading ---------------------------------------------------------------------------------------------------

    async def _tail(self, thread: str, namespace: str, parent: str | None) -> Tail:
        """What the next checkpoint follows: its parent's sources, and the last number of the namespace."""
        last = self._tails.get((thread, namespace))
        if last is None:
            row = await fetch(self._pool, reading.LATEST, (as_uuid(thread, "thread_id"), namespace))
            last = Tail.of(row) if row else Tail(thread, namespace, None, 0, None, {})
        if parent == last.checkpoint_id:
            return last
        other = await self._row_of(thread, namespace, parent) if parent else None
        sources = Tail.of(other).sources if other else {}
        return Tail(thread, namespace, parent, await self._last_number(thread, namespace), None, sources)

    async def _last_number(self, thread: str, namespace: str) -> int:
        found = await fetch(self._pool, reading.LAST_NUMBER, (UUID(thread), namespace))
        return int(found["number"])

    async def _row_of(self, thread: str, namespace: str, checkpoint_id: str) -> Any:
        place = (as_uuid(thread, "thread_id"), namespace, as_uuid(checkpoint_id, "checkpoint_id"))
        return await fetch(self._pool, reading.BY_ID, place)

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The named checkpoint, or the latest: the run's head, never the newest by anybody's clock."""
        thread, namespace, checkpoint_id = place(config)
        if not self._begun and not checkpoint_id and not namespace:
            self._tails.setdefault((thread, namespace), Tail(thread, namespace, None, 0, None, {}))
            return None
        if checkpoint_id:
            row = await self._row_of(thread, namespace, checkpoint_id)
        else:
            row = await fetch(self._pool, reading.LATEST, (as_uuid(thread, "thread_id"), namespace))
        if row is None:
            if not checkpoint_id:
                self._tails[(thread, namespace)] = Tail(thread, namespace, None, 0, None, {})
            return None
        loaded = await persist(partial(reading.load, self._pool, row))
        if not checkpoint_id:
            self._tails[(thread, namespace)] = Tail.of(row, loaded.checkpoint)
        return loaded

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - LangGraph's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """The checkpoints that fit, newest first."""
        text, args = reading.search(config, filter, before, limit)
        for row in await self._pool.fetch(text, *args):
            yield await reading.load(self._pool, row)

    # --- keeping ---------------------------------------------------------------------------------------------------

    async def adelete_thread(self, thread_id: str) -> None:
        """Remove all checkpoints and writes of a thread."""
        await retention.delete_threads(self._pool, [as_uuid(thread_id, "thread_id")])
        self._tails.clear()

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Remove the checkpoints that the named LangGraph runs made."""
        await retention.delete_for_runs(self._pool, list(run_ids))
        self._tails.clear()

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy a thread whole."""
        source, target = as_uuid(source_thread_id, "thread_id"), as_uuid(target_thread_id, "thread_id")
        await retention.copy_thread(self._pool, source, target)
        self._tails.clear()

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Keep the latest checkpoint of each namespace (`keep_latest`), or nothing (`delete`)."""
        threads = [as_uuid(thread, "thread_id") for thread in thread_ids]
        if strategy not in {"keep_latest", "delete"}:
            raise Invalid(f"There is no pruning strategy {strategy!r}; use keep_latest or delete.")
        if strategy == "delete":
            await retention.delete_threads(self._pool, threads)
        else:
            for thread in threads:
                await retention.keep_latest(self._pool, thread)
        self._tails.clear()


# LangGraph asks for it at each run's begin; found out once, it is a hundredth of a small run's time.
RunSaver.aput_writes.__signature__ = signature(RunSaver.aput_writes)  # type: ignore[attr-defined]  # inspect's protocol


def _node(visits: Sequence[Finished], rows: Rows) -> str | None:
    """The node that a run is at after a checkpoint: what follows, else what is done."""
    return ", ".join(sorted(set(rows.following))) or (visits[-1].node if visits else None)


def _written_elsewhere(thread: str) -> Conflict:
    return Conflict(f"The thread {thread} was written by somebody else at the same time; try again.")
