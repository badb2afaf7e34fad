"""Who may use a cluster: one that takes jobs from anyone who reaches it runs anyone's code, and is not joined."""

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
"""How each of Ray's two doors for jobs answers a request without a token that it would serve: the agent of a node knows
no job of that name."""


def require_cluster_auth(cluster: Mapping[str, Any], allow: bool) -> None:
    """Leave a cluster where a stranger on the network could submit a job: it has no token authentication.

    Jobs are taken by the job server, which is the dashboard, and by the agent of every node, which listens on the
    node's own address even where the dashboard is bound to 127.0.0.1. Both are asked without a token; one that cannot
    be reached from here is no objection.

    Args:
        cluster: `address_info` of what `ray.init` returns.
        allow: join it all the same.

    Raises:
        ConfigError: it is open to others.
    """
    if allow:
        return
    for door in _job_urls(cluster):
        if is_open(door):
            raise ConfigError(
                f"cluster: received one that takes jobs from anyone who reaches {door}, expected token "
                "authentication. Start it with RAY_AUTH_MODE=token and one token on all nodes (`ray get-auth-token "
                "--generate`), as README.md describes under On a cluster; or give --allow-open-cluster True where "
                "nobody else can reach this network"
            )


def _job_urls(cluster: Mapping[str, Any]) -> Sequence[str]:
    """URLs that others can reach, and that would answer a stranger if the cluster had no token."""
    found = []
    if server := cluster.get("webui_url"):
        parts = urlsplit(server if "://" in server else f"http://{server}")
        # bound to all addresses of a head whose own is 127.0.0.1, it is told as 127.0.0.1
        hosts = _local_addresses() if is_loopback(parts.hostname or "") else [parts.hostname or ""]
        found += [f"{parts.scheme}://{_in_url(host)}:{parts.port or 80}{_SERVER}" for host in hosts]
    host, port = cluster.get("node_ip_address"), cluster.get("dashboard_agent_listen_port")
    if host and port and not is_loopback(host):
        found.append(f"http://{_in_url(host)}:{port}{_AGENT}")
    return found


def is_loopback(host: str) -> bool:
    """Whether a host name or address can be reached from its own machine alone; pure.

    Args:
        host: without a port. Any name but localhost counts as reachable, and so do 0.0.0.0 and ::.
    """
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return host.rstrip(".").lower() == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def is_open(url: str) -> bool:
    """Whether a door for jobs serves a request without a token; False too where nothing answers."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)  # asks no proxy, follows no redirection
    try:
        connection.request("GET", parts.path)
        return connection.getresponse().status in _OPEN_STATUS[parts.path]
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _local_addresses() -> list[str]:
    """Addresses of this machine that others can reach."""
    found = [entry.address for entries in psutil.net_if_addrs().values() for entry in entries]
    return [address for address in found if _is_address(address) and not is_loopback(address)]


def _is_address(text: str) -> bool:
    """Whether it is an IP address, and not a hardware or a link's own one."""
    try:
        return not ipaddress.ip_address(text.partition("%")[0]).is_link_local
    except ValueError:
        return False


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
