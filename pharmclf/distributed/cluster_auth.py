"""Refuses Ray clusters without token authentication: anyone who reaches them could run code on them."""

from __future__ import annotations

import http.client
import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import psutil

from pharmclf.core.errors import ConfigError

_TIMEOUT_S = 2.0
_SERVER, _AGENT = "/api/jobs/", "/api/job_agent/jobs/none/logs"
_OPEN_STATUS = {_SERVER: {200}, _AGENT: {200, 404}}
"""Status codes of Ray's two endpoints for jobs when they serve a request without a token; the agent of a node knows no
job of that name."""


def require_cluster_auth(cluster: Mapping[str, Any], allow: bool) -> None:
    """Refuse a cluster that accepts jobs without a token from other machines.

    The job server, which is the dashboard, accepts jobs, and so does the agent of every node, which listens on the
    address of the node even if the dashboard is bound to 127.0.0.1. Both get a request without a token. One that
    cannot be reached from here is ignored.

    Args:
        cluster: `address_info` of what `ray.init` returns.

    Raises:
        ConfigError: it accepts jobs without a token.
    """
    if allow:
        return
    for url in _job_urls(cluster):
        if is_open(url):
            raise ConfigError(
                f"cluster: received one that accepts jobs without a token at {url}, expected token "
                "authentication. Start it with RAY_AUTH_MODE=token and one token on all nodes (`ray get-auth-token "
                "--generate`), as cluster/README.md describes; or give --allow-unauthenticated-cluster "
                "where this network is private"
            )


def _job_urls(cluster: Mapping[str, Any]) -> Sequence[str]:
    """URLs that other machines can reach and that accept jobs."""
    found = []
    if server := cluster.get("webui_url"):
        parts = urlsplit(server if "://" in server else f"http://{server}")
        # Ray reports 127.0.0.1 also for a dashboard that listens on all addresses
        hosts = _local_addresses() if is_loopback(parts.hostname or "") else [parts.hostname or ""]
        found += [f"{parts.scheme}://{_in_url(host)}:{parts.port or 80}{_SERVER}" for host in hosts]
    host, port = cluster.get("node_ip_address"), cluster.get("dashboard_agent_listen_port")
    if host and port and not is_loopback(host):
        found.append(f"http://{_in_url(host)}:{port}{_AGENT}")
    return found


def is_loopback(host: str) -> bool:
    """Whether a host name or address is reachable only from its own machine; pure.

    Args:
        host: without a port. Names other than localhost count as reachable, and so do 0.0.0.0 and ::.
    """
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return host.rstrip(".").lower() == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def is_open(url: str) -> bool:
    """Whether a URL serves a request without a token; False also if nothing answers."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)  # without proxy and redirection
    try:
        connection.request("GET", parts.path)
        return connection.getresponse().status in _OPEN_STATUS[parts.path]
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _local_addresses() -> list[str]:
    """Addresses of this machine that other machines can reach."""
    found = [entry.address for entries in psutil.net_if_addrs().values() for entry in entries]
    return [address for address in found if _is_address(address) and not is_loopback(address)]


def _is_address(text: str) -> bool:
    """Whether a text is an IP address other than a link-local one; psutil lists hardware addresses too."""
    try:
        return not ipaddress.ip_address(text.partition("%")[0]).is_link_local
    except ValueError:
        return False


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
