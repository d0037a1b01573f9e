"""The server: asyncio in a thread of its own, raw HTTP/1.1, so that it can break off wherever a script wants it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from tests.openai_server.replies import Reply, chunks, completion, error
from tests.patience import PATIENCE

Script = Callable[[dict[str, Any]], Reply] | Callable[[dict[str, Any], Mapping[str, str]], Reply] | Sequence[Reply]


@dataclass(frozen=True)
class Received:
    """One request as it came in; header names are in lower case."""

    path: str
    headers: Mapping[str, str]
    json: dict[str, Any]
    at: float = field(default_factory=time.monotonic)
    """Seconds of the monotonic clock."""


class OpenAIServer:
    """A Chat Completions endpoint on a free port of loopback that lives as long as its `with` block.

    A callable script gets the request's JSON (and, if it takes two arguments, its headers); a sequence is played in
    order, and a request beyond its end is answered with a 500 that says so. Scripts run in the server's one thread.
    """

    def __init__(self, script: Script, *, models: Sequence[str] = ("scripted",)) -> None:
        self.requests: list[Received] = []
        self.models = tuple(models)
        self.port = 0
        self._script = script
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="openai-server", daemon=True)
        self._stop: asyncio.Event | None = None

    @property
    def base_url(self) -> str:
        """What `providers.<name>.base_url` is set to."""
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> OpenAIServer:
        self._thread.start()
        if not self._ready.wait(PATIENCE):
            raise RuntimeError(f"The loopback model server did not come up within {PATIENCE} s.")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        open_connections: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            open_connections.add(task)
            task.add_done_callback(open_connections.discard)
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._connection(reader, writer)
            writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in list(open_connections):
            task.cancel()
        await asyncio.gather(*open_connections, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            received = await _read(reader)
            if received is None:
                return
            if received.path.endswith("/models"):
                listed = {"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]}
                await _send(writer, 200, {}, json.dumps(listed).encode())
                continue
            self.requests.append(received)
            if not await self._answer(writer, received, self._reply(received)):
                return

    def _reply(self, received: Received) -> Reply:
        if not received.path.endswith("/chat/completions"):
            return error(404, f"There is no {received.path} here.")
        if not callable(self._script):
            number = len(self.requests)
            beyond = error(500, f"The script has {len(self._script)} replies; this is request {number}.")
            return self._script[number - 1] if number <= len(self._script) else beyond
        try:
            if self._script_takes_headers():
                return self._script(received.json, received.headers)  # type: ignore[call-arg]  # scripts take one or two arguments
            return self._script(received.json)  # type: ignore[call-arg]  # scripts take one or two arguments
        except Exception as failure:  # noqa: BLE001 - a broken script must be seen by the test, not hang it
            return error(500, f"The script failed: {failure!r}")

    def _script_takes_headers(self) -> bool:
        code = getattr(self._script, "__code__", None) or getattr(type(self._script).__call__, "__code__", None)
        own = 1 if hasattr(self._script, "__self__") or not hasattr(self._script, "__code__") else 0
        return code is not None and code.co_argcount - own >= 2

    async def _answer(self, writer: asyncio.StreamWriter, received: Received, reply: Reply) -> bool:
        """Send the reply; False when the connection is not to be used again."""
        if reply.delay:
            await asyncio.sleep(reply.delay)
        if reply.ending == "disconnect":
            return False
        model = str(received.json.get("model", ""))
        if reply.ending == "endless":
            return await _send_for_ever(writer)
        if reply.raw is None and received.json.get("stream"):
            options = received.json.get("stream_options") or {}
            parts = chunks(reply, model, with_usage=bool(options.get("include_usage")))
            return await _send_stream(writer, parts, cut=reply.ending == "cut")
        body = reply.raw if reply.raw is not None else json.dumps(completion(reply, model)).encode()
        await _send(writer, reply.status, reply.headers, body, cut=reply.ending == "cut")
        return reply.ending == "whole"


async def _read(reader: asyncio.StreamReader) -> Received | None:
    request_line = await reader.readline()
    if not request_line:
        return None
    path = request_line.split()[1].decode()
    headers: dict[str, str] = {}
    while (line := await reader.readline()) not in (b"\r\n", b""):
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(path=path, headers=headers, json=json.loads(body) if body else {})


async def _send(
    writer: asyncio.StreamWriter, status: int, headers: Mapping[str, str], body: bytes, *, cut: bool = False
) -> None:
    lines = [f"HTTP/1.1 {status} Scripted", f"Content-Length: {len(body)}"]
    if "content-type" not in {name.lower() for name in headers}:
        lines.append("Content-Type: application/json")
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + (body[: len(body) // 2] if cut else body))
    await writer.drain()


_STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


async def _send_stream(writer: asyncio.StreamWriter, parts: Sequence[bytes], *, cut: bool) -> bool:
    writer.write(_STREAM_HEAD)
    for part in parts[: len(parts) // 2] if cut else parts:
        writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        await writer.drain()
    if not cut:
        writer.write(b"0\r\n\r\n")
        await writer.drain()
    return not cut


async def _send_for_ever(writer: asyncio.StreamWriter) -> bool:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
    block = b" " * 16_384
    while not writer.is_closing():
        writer.write(f"{len(block):x}\r\n".encode() + block + b"\r\n")
        await writer.drain()
        await asyncio.sleep(0.001)
    return False
