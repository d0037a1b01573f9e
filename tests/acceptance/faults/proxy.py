"""A small proxy before PostgreSQL that knows where a transaction ends: it loses replies, swallows, delays and resets.

A reply is lost like this: the request passes, the server commits, and the connection is reset instead of telling so.
Which transaction that is, marks say: bytes that all stand in its statements or their parameters (text, or the sixteen
bytes of a UUID).
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from dataclasses import dataclass, field
from types import TracebackType

from sqlalchemy.engine import make_url

_SSL_REQUEST = 80877103


@dataclass(eq=False)
class Loss:
    """A reply that is to be lost once; `happened` counts how often it was."""

    marks: tuple[bytes, ...]
    without: tuple[bytes, ...] = ()
    happened: int = 0

    def fits(self, content: bytes) -> bool:
        """Whether this is the transaction."""
        here = all(mark in content for mark in self.marks) and not any(mark in content for mark in self.without)
        return here and not self.happened


@dataclass(eq=False)
class Proxy:
    """Listens on loopback as long as its `async with` block."""

    target: str
    losses: list[Loss] = field(default_factory=list)
    swallowing: bool = False
    """Every byte vanishes, and whoever was connected meanwhile is never answered again."""
    delay: float = 0.0
    connections: set[_Connection] = field(default_factory=set)
    swallowed: int = 0
    delayed: int = 0
    cut: int = 0
    _server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """The address of the database by way of this proxy."""
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return make_url(self.target).set(host="127.0.0.1", port=port).render_as_string(hide_password=False)

    def lose(self, *marks: bytes, without: tuple[bytes, ...] = ()) -> Loss:
        """Lose the reply to the commit of the next transaction in which all of these stand, and none of those."""
        self.losses.append(Loss(marks, without))
        return self.losses[-1]

    def reset(self) -> int:
        """Reset every connection; returns how many there were."""
        found = list(self.connections)
        for connection in found:
            connection.abort()
        self.cut += len(found)
        return len(found)

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.reset()
        while self.connections:
            await asyncio.sleep(0.01)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self, reader, writer)
        self.connections.add(connection)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await connection.run()
        finally:
            connection.abort()
            self.connections.discard(connection)


class _Connection:
    """One client and its session."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy, self._reader, self._writer = proxy, reader, writer
        self._server: asyncio.StreamWriter | None = None
        self._statements: dict[bytes, bytes] = {}
        self._content = bytearray()
        self._dead = False
        self._ending = False
        """Whether the client waits for the end of what it asked (Sync), not for a part of it (Flush)."""

    def abort(self) -> None:
        """End both sides at once."""
        for writer in (self._writer, self._server):
            if writer is not None:
                writer.transport.abort()

    async def run(self) -> None:
        """Pass on until one side ends."""
        url = make_url(self._proxy.target)
        first = await self._startup()
        if first is None:
            return
        reader, self._server = await asyncio.open_connection(url.host, url.port)
        self._server.write(first)
        pumps = [asyncio.ensure_future(pump) for pump in (self._requests(), self._replies(reader))]
        _, others = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        self.abort()
        for other in others:
            other.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)

    async def _startup(self) -> bytes | None:
        while True:
            head = await self._reader.readexactly(8)
            length, code = struct.unpack("!ii", head)
            whole = head + await self._reader.readexactly(length - 8)
            if await self._vanishes():
                await self._reader.read()
                return None
            if code != _SSL_REQUEST:
                return whole
            self._writer.write(b"N")

    async def _vanishes(self) -> bool:
        """Whether what comes now is swallowed; waits for as long as everything is delayed."""
        if self._proxy.delay:
            self._proxy.delayed += 1
            await asyncio.sleep(self._proxy.delay)
        if self._proxy.swallowing and not self._dead:
            self._dead = True
            self._proxy.swallowed += 1
        return self._dead

    async def _requests(self) -> None:
        assert self._server is not None
        while True:
            kind, whole = await _message(self._reader)
            if await self._vanishes():
                continue
            self._note(kind, whole[5:])
            self._server.write(whole)
            await self._server.drain()

    def _note(self, kind: bytes, body: bytes) -> None:
        self._ending = kind in b"SQ" if kind in b"SQH" else self._ending
        if kind == b"P":
            name, _, rest = body.partition(b"\0")
            self._statements[name] = rest
        elif kind == b"B":
            _, _, rest = body.partition(b"\0")
            name, _, parameters = rest.partition(b"\0")
            self._content += self._statements.get(name, b"") + parameters
        elif kind == b"Q":
            self._content += body

    async def _replies(self, reader: asyncio.StreamReader) -> None:
        held, failed = bytearray(), False
        ready = False
        while True:
            kind, whole = await _message(reader)
            if await self._vanishes():
                continue
            held += whole
            failed = failed or kind == b"E" or (kind == b"C" and whole[5:].startswith(b"ROLLBACK"))
            if kind == b"Z":
                ready = True
                if whole[5:6] == b"I":
                    if not failed and self._loses():
                        return
                    self._content.clear()
                failed = False
            if kind == b"Z" or not ready or not self._ending or not self._suspected():
                self._writer.write(bytes(held))
                held.clear()
                await self._writer.drain()

    def _suspected(self) -> bool:
        content = bytes(self._content)
        return any(loss.fits(content) for loss in self._proxy.losses)

    def _loses(self) -> bool:
        content = bytes(self._content)
        for loss in self._proxy.losses:
            if loss.fits(content):
                loss.happened += 1
                self._proxy.cut += 1
                return True
        return False


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readexactly(5)
    length = int.from_bytes(head[1:], "big")
    return head[:1], head + await reader.readexactly(length - 4)
