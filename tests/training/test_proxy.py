"""Nodes are reached without the proxy of the environment; everything else goes on through it."""

from __future__ import annotations

import os
import urllib.request

import pytest

from pharmclf.training.proxy import exceptions_for, proxies, reach_directly

PROXY = {"http_proxy": "http://proxy:3128"}
HERE = "localhost,127.0.0.1,::1"


def test_without_a_proxy_nothing_is_changed() -> None:
    assert exceptions_for(["10.0.0.1"], {"no_proxy": "intranet", "PATH": "/bin"}) == {}


def test_the_nodes_join_the_exceptions_that_are_there() -> None:
    """In the variables of all clients; gRPC reads its own in place of the general one."""
    found = exceptions_for(["10.0.0.1", "10.0.0.2"], PROXY | {"no_proxy": "intranet, 10.0.0.1"})
    expected = f"intranet,10.0.0.1,{HERE},10.0.0.2"
    assert found == {"no_proxy": expected, "NO_PROXY": expected, "no_grpc_proxy": expected}
    assert exceptions_for(["10.0.0.1", "10.0.0.2"], PROXY | found) == {}  # given again, nothing changes


def test_exceptions_of_one_spelling_are_not_hidden_by_the_other() -> None:
    """Python reads no_proxy where there is one, and NO_PROXY otherwise."""
    found = exceptions_for(["n"], {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "intranet"})
    assert found["no_proxy"] == f"intranet,{HERE},n"
    both = exceptions_for(["n"], PROXY | {"no_proxy": "a", "NO_PROXY": "b", "no_grpc_proxy": "c"})
    assert both == {"no_proxy": f"a,{HERE},n", "NO_PROXY": f"b,{HERE},n", "no_grpc_proxy": f"c,{HERE},n"}


def test_an_exception_of_everything_stays_one() -> None:
    """`*` counts only by itself, and gRPC does not know it."""
    assert exceptions_for(["n"], PROXY | {"no_proxy": "*", "NO_PROXY": "*"}) == {"no_grpc_proxy": f"{HERE},n"}


def test_object_storage_keeps_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the nodes' own names and addresses are left out; asked of Python's own rules."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_grpc_proxy", "")
    reach_directly(["10.0.0.1", "node-2"])
    assert [bool(urllib.request.proxy_bypass(host)) for host in ("10.0.0.1", "node-2", "127.0.0.1")] == [True] * 3
    for host in ("bucket.s3.eu-central-1.amazonaws.com", "10.0.0.12", "storage.googleapis.com", "minio.node-3"):
        assert not urllib.request.proxy_bypass(host)


def test_passwords_of_proxies_are_not_shown() -> None:
    """User and password stand in many a hospital's variable."""
    found = proxies(
        {"https_proxy": "http://user:secret@proxy:3128", "all_proxy": "user:sec@ret@proxy:1", "http_proxy": ""}
    )
    assert found == {"https_proxy": "http://…@proxy:3128", "all_proxy": "…@proxy:1"}
