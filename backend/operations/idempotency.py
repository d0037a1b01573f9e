"""Equal POSTs with the same `Idempotency-Key` do their work once and get the same answer.

The key's row commits in the transaction of the work, so there is an answer if and only if the work was done. A second
request waits at the unique index until the first has committed (then it gets the answer) or failed (then it does the
work). Keys are forgotten after a day; a run keeps the key that it was started with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import delete, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from backend.adapters.db.tables import IdempotencyKey
from backend.errors import Conflict, Fault, Invalid

MAX_KEY = 200
_EXPIRED = IdempotencyKey.created_at < text("clock_timestamp() - interval '1 day'")


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered: HTTP status, the headers that count, and the body."""

    status: int
    headers: dict[str, Any]
    body: bytes


def check(key: str) -> None:
    """Raise `Invalid` for a key that is no key."""
    if not 1 <= len(key) <= MAX_KEY or not key.isprintable() or not key.isascii():
        right = f"1 to {MAX_KEY} printable ASCII characters"
        raise Invalid(f"An idempotency key has {right}.", faults=[Fault("/header/Idempotency-Key", right)])


async def claim(session: AsyncSession, tenant_id: UUID, key: str, request_hash: str) -> Answer | None:
    """Take the key for this transaction, or return the answer that it already has.

    Raises `Conflict` when the key was used with another request, `Invalid` for a key that is no key.
    """
    check(key)
    await _forget(session, tenant_id, key)
    taken = await session.scalar(
        insert(IdempotencyKey)
        .values(tenant_id=tenant_id, key=key, request_hash=request_hash)
        .on_conflict_do_nothing()
        .returning(IdempotencyKey.key)
    )
    if taken is not None:
        return None
    found = await session.scalar(
        select(IdempotencyKey).where(IdempotencyKey.tenant_id == tenant_id, IdempotencyKey.key == key)
    )
    if found is None or found.status is None:
        raise Conflict(f"The request with the key {key} is still worked on; ask again.", code="idempotency_conflict")
    if found.request_hash != request_hash:
        raise Conflict(
            f"The key {key} was used with another request; take a new key for a new request.",
            code="idempotency_conflict",
        )
    return Answer(found.status, dict(found.headers), found.body or b"")


async def keep(session: AsyncSession, tenant_id: UUID, key: str, answer: Answer) -> None:
    """Store the answer of a key that this transaction has claimed."""
    await session.execute(
        update(IdempotencyKey)
        .where(IdempotencyKey.tenant_id == tenant_id, IdempotencyKey.key == key)
        .values(status=answer.status, headers=answer.headers, body=answer.body)
    )


async def _forget(session: AsyncSession, tenant_id: UUID, key: str) -> None:
    """Remove the key itself if it is older than a day, and a few others, so that the table never needs a sweep."""
    mine = (IdempotencyKey.tenant_id == tenant_id) & (IdempotencyKey.key == key) & _EXPIRED
    await session.execute(delete(IdempotencyKey).where(mine))
    identity = tuple_(IdempotencyKey.tenant_id, IdempotencyKey.key)
    old = (
        select(IdempotencyKey.tenant_id, IdempotencyKey.key)
        .where(_EXPIRED)
        .order_by(IdempotencyKey.created_at)
        .limit(10)
        .with_for_update(skip_locked=True)
    )
    await session.execute(delete(IdempotencyKey).where(identity.in_(old)))
