"""A command's output, kept in bounded memory: its beginning and its end, with the middle left out."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class Output:
    """Collects a stream; `limit` bytes are kept, however much comes."""

    def __init__(self, limit: int) -> None:
        """Keep the first and the last half of `limit` bytes."""
        self.total = 0
        self._half = max(1, limit // 2)
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_size = 0

    @property
    def truncated(self) -> bool:
        """Whether anything was left out."""
        return self.total > len(self._head) + self._half

    def feed(self, chunk: bytes) -> None:
        """Take the next piece."""
        self.total += len(chunk)
        room = self._half - len(self._head)
        if room > 0:
            self._head += chunk[:room]
            chunk = chunk[room:]
        if chunk:
            self._tail.append(chunk)
            self._tail_size += len(chunk)
        while self._tail and self._tail_size - len(self._tail[0]) >= self._half:
            self._tail_size -= len(self._tail.popleft())

    async def drain(self, stream: asyncio.StreamReader, most: int, flooded: Callable[[], None]) -> None:
        """Read a stream to its end; say once, by calling `flooded`, that more than `most` bytes came."""
        told = False
        while chunk := await stream.read(65_536):
            self.feed(chunk)
            if self.total > most and not told:
                told = True
                flooded()

    def text(self) -> str:
        """Return what was kept, with a line where the middle is missing."""
        tail = b"".join(self._tail)[-self._half :]
        if not self.truncated:
            return (bytes(self._head) + tail).decode("utf-8", "replace")
        left_out = self.total - len(self._head) - len(tail)
        middle = f"\n… {left_out} bytes left out …\n"
        return self._head.decode("utf-8", "replace") + middle + tail.decode("utf-8", "replace")
