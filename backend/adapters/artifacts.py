"""Bodies of what runs made, on the local disk by the sha256 of their content: written once, checked when read."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import uuid
from dataclasses import dataclass
from pathlib import Path

from backend.errors import Invalid, NotFound, Unavailable


@dataclass(frozen=True, slots=True)
class Stored:
    """A body that is safely on disk."""

    sha256: str
    size: int


class ArtifactStore:
    """A folder of bodies; the same content is stored once, and storing it again changes nothing."""

    def __init__(self, home: Path) -> None:
        """Keep bodies under `<home>/artifacts/<2 hex digits>/<sha256>`."""
        self.root = home / "artifacts"

    async def put(self, body: bytes) -> Stored:
        """Store a body; when this returns it survives a crash."""
        digest = hashlib.sha256(body).hexdigest()
        try:
            await asyncio.to_thread(_write_once, self._path(digest), body)
        except OSError as failed:
            raise Unavailable(
                f"The artifact could not be stored: {failed.strerror}.", code="artifact_store"
            ) from failed
        return Stored(digest, len(body))

    async def get(self, digest: str) -> bytes:
        """Return a body; `NotFound` where it is gone, `Unavailable` where the disk changed it."""
        try:
            body = await asyncio.to_thread(self._path(digest).read_bytes)
        except FileNotFoundError:
            raise NotFound(f"There is no artifact with the sha256 {digest}.") from None
        if hashlib.sha256(body).hexdigest() != digest:
            raise Unavailable(f"The artifact {digest} is damaged on disk.", code="artifact_damaged")
        return body

    async def delete(self, digest: str) -> None:
        """Remove a body; it need not exist."""
        await asyncio.to_thread(self._path(digest).unlink, missing_ok=True)

    def _path(self, digest: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise Invalid(f"{digest[:80]!r} is not a sha256.")
        return self.root / digest[:2] / digest


def _write_once(path: Path, body: bytes) -> None:
    if path.exists() and path.read_bytes() == body:
        # Young again: whoever removes old bodies that no row names must leave it to the row that is about to.
        os.utime(path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{uuid.uuid4().hex}")
    try:
        with draft.open("xb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
