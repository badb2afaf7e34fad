"""A client of the server of predictions, and requests that it must refuse."""

from __future__ import annotations

import base64
import http.client
import io
import json
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

TOKEN = "a token of thirty-two characters"
BOUNDARY = "B0undary"


def form(contents: Sequence[bytes]) -> tuple[bytes, str]:
    """A multipart form with files, and its content type."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'.encode()
    body = b"".join(head + content + b"\r\n" for content in contents) + f"--{BOUNDARY}--\r\n".encode()
    return body, f"multipart/form-data; boundary={BOUNDARY}"


def as_json(contents: Sequence[bytes]) -> tuple[bytes, str]:
    """A JSON body with images, and its content type."""
    return json.dumps({"images": [base64.b64encode(each).decode() for each in contents]}).encode(), "application/json"


def png_bomb(side: int) -> bytes:
    """A PNG of some hundred kilobytes that says it has side x side pixels, all of them black."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1 << 20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def jpeg(side: int = 64, colour: tuple[int, int, int] = (200, 30, 90)) -> bytes:
    """A JPEG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, "JPEG")
    return buffer.getvalue()


@dataclass
class Client:
    """Sends requests to a server of this machine."""

    port: int
    token: str = TOKEN

    def send(
        self, method: str, path: str, body: Any = None, kind: str = "", *, chunked: bool = False
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON or text, and headers of the response to a request on a new connection."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        if kind:
            headers["Content-Type"] = kind
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, headers, encode_chunked=chunked)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        try:
            return response.status, json.loads(content), dict(response.getheaders())
        except ValueError:
            return response.status, content.decode(), dict(response.getheaders())

    def predict(self, body: Any, kind: str = "image/jpeg", *, model: str = "") -> tuple[int, Any]:
        """Status and JSON of a prediction."""
        return self.send("POST", f"/predict?model={model}" if model else "/predict", body, kind)[:2]

    def start_slowly(self, declared: int = 1000) -> socket.socket:
        """A connection that has sent the headers of a prediction and one byte of its body."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=120)
        head = f"POST /predict HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {self.token}\r\n"
        connection.sendall(f"{head}Content-Type: image/jpeg\r\nContent-Length: {declared}\r\n\r\nx".encode())
        return connection


def status_of(connection: socket.socket) -> int:
    """The status of a response, read off a connection that is then closed."""
    with connection:
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status


@dataclass
class Load:
    """Threads that send the same requests again and again until the end of the block."""

    call: Callable[[], tuple[int, Any]]
    clients: int = 4
    answers: list[tuple[int, Any]] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Load:
        self._threads = [threading.Thread(target=self._run) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self.answers.append(self.call())
            except (OSError, http.client.HTTPException) as error:
                self.errors.append(error)
