"""A proxy for tests between a client and an S3 server: passes bytes on unchanged, and does what goes wrong in networks.

The Host header stays as it was received, so that signatures stay valid: the client is pointed at the proxy.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

_PIECE_BYTES = 1 << 16


@dataclass(frozen=True)
class Request:
    """The head of one request."""

    number: int
    """Counts from 0, over all connections."""
    method: str
    target: str
    """Path and query as the client wrote them."""
    body_bytes: int

    @property
    def is_listing(self) -> bool:
        """Whether it asks for a page of a listing."""
        return self.method == "GET" and "list-type=2" in self.target


@dataclass(frozen=True)
class Fault:
    """What goes wrong with a request."""

    kind: Literal["none", "answer", "reset", "lost", "cut", "slow", "hold"]
    """answer: the proxy answers itself, the server is not asked. reset: the connection is reset instead of an answer.
    lost: the server is asked, and the connection is reset instead of its answer. cut: the connection is closed after
    half of the answer's body. slow: the request waits for `seconds`. hold: half of the request's body goes to the
    server, the other half never does; the connection stays until the client leaves it."""
    status: int = 503
    code: str = "SlowDown"
    seconds: float = 0.0


SLOW_DOWN = Fault("answer")
EXPIRED = Fault("answer", 403, "ExpiredToken")
RESET, LOST, CUT, HOLD = Fault("reset"), Fault("lost"), Fault("cut"), Fault("hold")

Choose = Callable[[Request], "Fault | None"]


class Proxy:
    """A context; serves from a thread of its own."""

    def __init__(self, host: str, port: int, choose: Choose = lambda _: None) -> None:
        self._server, self._choose = (host, port), choose
        self.requests: list[Request] = []
        self.faults: Counter[str] = Counter()
        self.holds = threading.Event()
        """Set when a request is held."""
        self.url = ""
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="proxy")

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def count(self, test: Callable[[Request], bool]) -> int:
        """How many requests were of a kind."""
        return sum(map(test, list(self.requests)))

    async def _main(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        connections: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            connections.add(task)
            try:
                with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
                    await self._serve(reader, writer)
            finally:
                writer.transport.abort()
                connections.discard(task)

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._ended.wait()
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = None
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                method, target = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")[:2]
                request = Request(len(self.requests), method, target, int(_header(head, b"content-length") or 0))
                self.requests.append(request)
                fault = self._choose(request) or Fault("none")
                kind = fault.kind
                self.faults[kind] += 1
                if kind in ("answer", "reset"):
                    await reader.readexactly(request.body_bytes)
                    if kind == "reset":
                        return _reset(writer)
                    writer.write(_answer(fault, method))
                    continue
                if kind == "slow":
                    await asyncio.sleep(fault.seconds)
                upstream = upstream or await asyncio.open_connection(*self._server)
                upstream[1].write(head)
                if kind == "hold":
                    await _pipe(reader, upstream[1], request.body_bytes // 2)
                    self.holds.set()
                    await reader.read()  # to the end, which comes when the client leaves
                    return None
                await _pipe(reader, upstream[1], request.body_bytes)
                if kind == "lost":
                    await upstream[0].readuntil(b"\r\n\r\n")
                    return _reset(writer)
                if not await _pass_answer(upstream[0], writer, method, cut=kind == "cut"):
                    return None
        finally:
            if upstream:
                upstream[1].transport.abort()


async def _pass_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, cut: bool) -> bool:
    """Pass an answer on; whether the connection goes on."""
    head = await reader.readuntil(b"\r\n\r\n")
    writer.write(head)
    status = int(head.split(b" ", 2)[1])
    length = _header(head, b"content-length")
    if method == "HEAD" or status in (204, 304):
        pass
    elif _header(head, b"transfer-encoding").lower() == b"chunked":
        while True:
            line = await reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            writer.write(line)
            await _pipe(reader, writer, size // 2 if cut else size + 2)
            if cut or not size:
                break
    else:
        await _pipe(reader, writer, int(length) // 2 if cut else int(length))
    await writer.drain()
    if cut:
        writer.close()
        await writer.wait_closed()
    return not cut and _header(head, b"connection").lower() != b"close"


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, num_bytes: int) -> None:
    while num_bytes:
        piece = await reader.read(min(num_bytes, _PIECE_BYTES))
        if not piece:
            raise EOFError
        writer.write(piece)
        await writer.drain()
        num_bytes -= len(piece)


def _header(head: bytes, name: bytes) -> bytes:
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip()
    return b""


def _answer(fault: Fault, method: str) -> bytes:
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{fault.code}</Code><Message>for a test</Message></Error>'
    )
    head = f"HTTP/1.1 {fault.status} Fault\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return (head + ("" if method == "HEAD" else body)).encode()


def _reset(writer: asyncio.StreamWriter) -> None:
    # with nothing lingering, closing a connection sends a reset
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


Through = Callable[[Callable[[Request], "Fault | None"]], Proxy]
"""Starts a proxy that does to each request what the function chooses."""
