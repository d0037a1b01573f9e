"""HTTP/1.1 over kept connections, as cheap as Python does it: the client must not be what is measured."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Line:
    """One connection; one request at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: Any = None) -> Answer:
        """Send a request and read its answer; a connection that the server closed meanwhile is opened again."""
        fresh = self._streams is None
        try:
            return await self._ask(method, path, body)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.close()
            if fresh:
                raise
            return await self._ask(method, path, body)

    async def _ask(self, method: str, path: str, body: Any) -> Answer:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        sent = b"" if body is None else json.dumps(body).encode()
        kind = "Content-Type: application/json\r\n" if sent else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n{kind}Content-Length: {len(sent)}\r\n\r\n"
        writer.write(head.encode() + sent)
        status = (await reader.readuntil(b"\r\n")).split(b" ", 2)[1]
        length: int | None = None
        chunked = False
        while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
            chunked = chunked or (name.lower() == b"transfer-encoding" and b"chunked" in value.lower())
        return Answer(int(status), await _body(reader, length, chunked))

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None


async def _body(reader: asyncio.StreamReader, length: int | None, chunked: bool) -> bytes:
    if not chunked:
        return await reader.readexactly(length or 0)
    parts = []
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readuntil(b"\r\n")
    return b"".join(parts)


class Lines:
    """Many connections to one server; a request takes one that is free."""

    def __init__(self, port: int, count: int) -> None:
        self._free: asyncio.LifoQueue[Line] = asyncio.LifoQueue()
        self._all = [Line(port) for _ in range(count)]
        for line in self._all:
            self._free.put_nowait(line)

    async def ask(self, method: str, path: str, body: Any = None, *, wanted: tuple[int, ...] = (200, 201, 202)) -> Any:
        """The answer; anything but a wanted status ends the benchmark with what was said."""
        line = await self._free.get()
        try:
            answer = await line.ask(method, path, body)
        finally:
            self._free.put_nowait(line)
        if answer.status not in wanted:
            raise RuntimeError(f"{method} {path} was answered with {answer.status}: {answer.body[:500]!r}")
        return answer

    def close(self) -> None:
        for line in self._all:
            line.close()
