"""A cluster that takes jobs from strangers is refused; one that asks for a token, or is out of reach, is not."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
from collections.abc import Iterator

import pytest

from pharmclf.config import ConfigError
from pharmclf.distributed import cluster_auth
from pharmclf.distributed.cluster_auth import is_loopback, is_open, require_cluster_auth

SERVER, AGENT = "/api/jobs/", "/api/job_agent/jobs/none/logs"


@contextlib.contextmanager
def answering(statuses: dict[str, int], host: str = "127.0.0.1") -> Iterator[int]:
    """The port of a server that answers paths with a status, and others with 404."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert "authorization" not in {name.lower() for name in self.headers}
            self.send_response(statuses.get(self.path, 404))
            self.send_header("location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer((host, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        ("127.0.0.1", True), ("127.1.2.3", True), ("localhost", True), ("LOCALHOST.", True), ("::1", True),
        ("[::1]", True), ("::ffff:127.0.0.1", True), ("0.0.0.0", False), ("::", False), ("10.0.0.5", False),
        ("192.168.1.4", False), ("172.16.0.1", False), ("169.254.3.4", False), ("8.8.8.8", False),
        ("fe80::1%eth0", False), ("head.example.org", False), ("localhost.example.org", False), ("", False),
    ],
)  # fmt: skip
def test_only_loopback_addresses_are_a_machines_own(host: str, alone: bool) -> None:
    """Private networks have other machines in them, too."""
    assert is_loopback(host) is alone


@pytest.mark.parametrize(
    ("path", "status", "opened"),
    [
        (SERVER, 200, True), (SERVER, 401, False), (SERVER, 403, False), (SERVER, 302, False), (SERVER, 404, False),
        (SERVER, 500, False), (AGENT, 404, True), (AGENT, 401, False), (AGENT, 403, False), (AGENT, 500, False),
    ],
)  # fmt: skip
def test_a_door_is_open_that_serves_a_request_without_a_token(
    path: str, status: int, opened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A login page that a request is sent on to is none; no proxy of the environment is asked."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with answering({path: status, "/elsewhere": 200}) as port:
        assert is_open(f"http://127.0.0.1:{port}{path}") is opened


def test_a_door_that_does_not_answer_is_not_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one where nobody listens, nor one that is silent, nor one that speaks otherwise."""
    monkeypatch.setattr(cluster_auth, "_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert not is_open(f"http://127.0.0.1:{port}{SERVER}")
    assert not is_open(f"http://127.0.0.1:{port}{SERVER}")
    with answering({SERVER: 200}) as port:
        assert not is_open(f"https://127.0.0.1:{port}{SERVER}")


@pytest.fixture
def address() -> str:
    """An address of this machine that others can reach."""
    found = cluster_auth._local_addresses()
    if not found:
        pytest.skip("this machine has no address but 127.0.0.1")
    return found[0]


@pytest.mark.parametrize("told_as", ["its own", "127.0.0.1"])
def test_an_open_job_server_is_refused_with_its_address_and_the_remedy(address: str, told_as: str) -> None:
    """Also where Ray tells it as 127.0.0.1 although it listens on all addresses; unless it is allowed."""
    with answering({SERVER: 200}, host="::" if ":" in address else "0.0.0.0") as port:
        host = address if told_as == "its own" else told_as
        cluster = {"webui_url": f"[{host}]:{port}" if ":" in host else f"{host}:{port}"}
        with pytest.raises(
            ConfigError, match=rf"{port}/api/jobs/, expected token.*RAY_AUTH_MODE=token.*--allow-unauth"
        ):
            require_cluster_auth(cluster, allow=False)
        require_cluster_auth(cluster, allow=True)


def test_the_open_agent_of_a_node_is_refused_where_the_job_server_is_hidden(address: str) -> None:
    """It takes jobs as well, on the node's own address."""
    if ":" in address:
        pytest.skip("this machine has no IPv4 address but 127.0.0.1")
    with answering({}, host=address) as port, answering({SERVER: 200}) as hidden:
        cluster = {"webui_url": f"127.0.0.1:{hidden}", "node_ip_address": address, "dashboard_agent_listen_port": port}
        with pytest.raises(ConfigError, match=rf"{address}:{port}/api/job_agent/"):
            require_cluster_auth(cluster, allow=False)
        require_cluster_auth(cluster | {"node_ip_address": "127.0.0.1"}, allow=False)


@pytest.mark.parametrize("cluster", [{}, {"webui_url": None}, {"webui_url": ""}, {"webui_url": "127.0.0.1:8265"}])
def test_a_cluster_that_nobody_else_can_reach_is_joined(cluster: dict[str, str | None]) -> None:
    """One without a job server, or with one for this machine alone."""
    require_cluster_auth(cluster, allow=False)


def test_a_cluster_that_asks_for_a_token_is_joined(address: str) -> None:
    """401 from both doors."""
    if ":" in address:
        pytest.skip("this machine has no IPv4 address but 127.0.0.1")
    with answering({SERVER: 401, AGENT: 401}, host=address) as port:
        cluster = {"webui_url": f"{address}:{port}", "node_ip_address": address, "dashboard_agent_listen_port": port}
        require_cluster_auth(cluster, allow=False)
