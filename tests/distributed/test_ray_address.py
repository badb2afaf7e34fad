"""A cluster that does not answer at RAY_ADDRESS is named within seconds; one that does is joined."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from pharmclf.config import ConfigError
from pharmclf.distributed import ray_address
from pharmclf.distributed.ray_address import check_address, requested_address


@contextlib.contextmanager
def listening(answer: bytes | None) -> Iterator[str]:
    """HOST:PORT of a program that takes connections, and answers with some bytes or never."""
    server, kept = socket.create_server(("127.0.0.1", 0)), list[socket.socket]()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = server.accept()[0]
                kept.append(connection)
                if answer is not None:
                    connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"127.0.0.1:{server.getsockname()[1]}"
    finally:
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()
        for connection in kept:
            connection.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def refused(address: str, timeout_s: float = 1.0) -> str:
    """The error of an address that does not answer; it comes in time."""
    began = time.monotonic()
    with pytest.raises(ConfigError) as error:
        check_address(address, timeout_s=timeout_s)
    assert time.monotonic() - began < timeout_s + 1.0
    return str(error.value)


def test_a_stale_address_is_named_with_the_remedy() -> None:
    """Where nobody listens any more."""
    address = f"127.0.0.1:{free_port()}"
    text = refused(address)
    assert text.startswith(f"RAY_ADDRESS: received '{address}', but no Ray cluster answers there: Connection refused")
    assert "`unset RAY_ADDRESS` starts Ray on this machine alone" in text


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "no answer in 1 s"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "another program listens on that port"),
        (b"", "no answer in 1 s"),
    ],
)
def test_a_port_that_another_program_has_taken_is_no_cluster(answer: bytes | None, reason: str) -> None:
    """Ray itself would wait for it without an end."""
    with listening(answer) as address:
        assert reason in refused(address)


def test_a_grpc_server_is_taken_at_once() -> None:
    """Ray's GCS is one; a real server of gRPC answers here."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        began = time.monotonic()
        check_address(f"127.0.0.1:{port}")
        check_address("auto", resolved=f"127.0.0.1:{port}")
        assert time.monotonic() - began < 2.0
    finally:
        server.stop(None).wait()


def test_a_cluster_that_is_about_to_start_is_waited_for() -> None:
    """A second for its head to listen."""
    port, server = free_port(), grpc.server(ThreadPoolExecutor(1))
    server.add_insecure_port(f"127.0.0.1:{port}")
    timer = threading.Timer(1.0, server.start)
    timer.start()
    try:
        check_address(f"127.0.0.1:{port}", timeout_s=10)
    finally:
        timer.join()
        server.stop(None).wait()


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "https://head", "ray://127.0.0.1:10001"])
def test_addresses_of_other_servers_of_ray_are_refused_with_the_way_to_submit(address: str) -> None:
    """They are what `ray job submit` and Ray's client want."""
    text = refused(address)
    assert f"received '{address}', expected HOST:PORT" in text
    assert "ray job submit --address http://HEAD:8265" in text


@pytest.mark.parametrize("address", ["6379", "head", "head:", "head:x", ":6379"])
def test_an_address_without_host_and_port_is_refused(address: str) -> None:
    assert "it is not of the form HOST:PORT" in refused(address)


def test_the_whole_search_ends_within_20_seconds() -> None:
    """The last attempt begins before the patience is at its end."""
    assert ray_address._TIMEOUT_S + ray_address._CONNECT_TIMEOUT_S <= 20


@pytest.mark.parametrize(("given", "address"), [("", ""), ("local", ""), (" ", ""), ("auto", "auto"), ("h:1", "h:1")])
def test_ray_is_started_here_where_no_cluster_is_named(
    given: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`local` is Ray's own word for it."""
    monkeypatch.setenv("RAY_ADDRESS", given)
    assert requested_address() == address
