"""What the user reads of an object store that refuses: by the answer of its server, whatever the name of the object."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pharmclf import storage
from pharmclf.core.errors import ConfigError
from pharmclf.storage.objects import reset_connections


class Answer(BaseHTTPRequestHandler):
    """Answers every request by the status and the code that a test sets."""

    status, code = 400, ""

    def do_GET(self) -> None:
        body = f"<Error><Code>{self.code}</Code></Error>".encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Answer]]:
    """The handler of a server of s3://."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        reset_connections()
        yield Answer
        server.shutdown()
    reset_connections()


def test_a_bucket_in_another_region_comes_with_the_remedy(server: type[Answer]):
    server.status, server.code = 301, "PermanentRedirect"
    with storage.timeout(1), pytest.raises(OSError, match=r"bucket is in another region.* Set AWS_REGION"):
        storage.read_bytes("s3://bucket/x")


def test_a_refused_object_is_no_outage_whatever_its_name(server: type[Answer]):
    server.status, server.code = 400, "InvalidRequest"
    with storage.timeout(1), pytest.raises(OSError, match="InvalidRequest") as refused:
        storage.read_bytes("s3://bucket/timeout.jpg")
    assert not isinstance(refused.value, storage.StorageUnavailableError)


@pytest.mark.parametrize("text", ["long", "-1", "nan", "inf"])
def test_a_patience_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch, text: str):
    """The variable, what it holds, and what was expected."""
    monkeypatch.setenv("PHARMCLF_STORAGE_PATIENCE_S", text)
    with pytest.raises(ConfigError, match=f"PHARMCLF_STORAGE_PATIENCE_S: received '{text}', expected a number of"):
        storage.read_bytes("s3://bucket/x")
