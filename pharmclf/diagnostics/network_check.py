"""Checks of what is between machines: connections between nodes, clocks, proxies."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pharmclf.core.background import start_in_thread
from pharmclf.core.errors import error_reason
from pharmclf.core.units import format_examples
from pharmclf.diagnostics.results import Finding, fail, ok, warn
from pharmclf.storage.lease import EXPIRES_S
from pharmclf.training.proxy import proxies

_CONNECT_TIMEOUT_S = 3.0
_MAX_CONNECTIONS = 64  # at a time
_NUM_EXAMPLES = 6
_CLOCK_FAIL_S = EXPIRES_S / 2  # the lease of a live holder is up to half as old as it may be
_CLOCK_WARN_S = 5.0
_RAY_PROXY_VARIABLE = "RAY_grpc_enable_http_proxy"
_PROXY_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A port of a node that other nodes must reach."""

    address: str
    port: int
    what: str
    """The owner of the port, as "of a worker"."""


def open_port(address: str) -> socket.socket:
    """Open a port of the system's choice that accepts connections, as a worker does, until the socket is shut down."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.create_server((address, 0), family=family, backlog=_MAX_CONNECTIONS)

    def accept() -> None:
        with contextlib.suppress(OSError):  # shut down
            while True:
                server.accept()[0].close()

    start_in_thread(accept, "open-port")
    return server


def try_connect(endpoints: Sequence[Endpoint]) -> list[str]:
    """Try to connect to each endpoint -> for each why it failed, "" where it did not."""
    with ThreadPoolExecutor(_MAX_CONNECTIONS) as pool:
        return list(pool.map(lambda endpoint: _connection_error(endpoint.address, endpoint.port), endpoints))


def _connection_error(host: str, port: int) -> str:
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT_S):
            return ""
    except TimeoutError:
        return f"no answer within {_CONNECT_TIMEOUT_S:g} s"
    except OSError as error:
        return error_reason(error)


def check_network(tried: Mapping[str, Sequence[tuple[Endpoint, str]]]) -> Finding:
    """Whether every node reaches every other, given the endpoints that each address tried and the results; pure."""
    failures: dict[tuple[str, str], list[str]] = {}
    for node, results in tried.items():
        for endpoint, error in results:
            if error:
                failures.setdefault((node, endpoint.address), []).append(f"{endpoint.port} {endpoint.what}: {error}")
    if not failures:
        num = sum(map(len, tried.values()))
        return ok("network", f"all {len(tried)} nodes reach each other ({num} connections tried)")
    pairs = [f"{node} cannot reach {other} (port {', '.join(ports)})" for (node, other), ports in failures.items()]
    remedy = (
        "open all TCP ports between the nodes, in security groups and firewalls: the system chooses the ports of "
        "workers (/proc/sys/net/ipv4/ip_local_port_range)"
    )
    return fail("network", format_examples(pairs, _NUM_EXAMPLES, "; "), remedy)


def min_clock_offset_s(began_s: float, ended_s: float, seen_s: float, grain_s: float = 0.0) -> float:
    """The least offset of another clock from this one that explains one reading of it; negative: it is behind. Pure.

    Args:
        began_s: time here before the other clock was read.
        ended_s: time here after it.
        seen_s: what it showed.
        grain_s: it rounds times down to multiples of this.
    """
    return max(seen_s - ended_s, 0.0) + min(seen_s + grain_s - began_s, 0.0)


def check_clock_skew(offset_s: float, other: str) -> Finding:
    """Whether the clock of another, as "the storage", agrees with this node's, given its least offset; pure."""
    if abs(offset_s) < _CLOCK_WARN_S:
        return ok("clock", f"agrees with that of {other}")
    text = f"that of {other} is {abs(offset_s):.0f} s {'ahead of' if offset_s > 0 else 'behind'} this one"
    remedy = "let chrony or systemd-timesyncd set the clocks, on this machine and on the other"
    if abs(offset_s) < _CLOCK_FAIL_S:
        return warn("clock", text, remedy)
    return fail("clock", f"{text}; from {_CLOCK_FAIL_S:.0f} s, a live run can look dead and get two writers", remedy)


@dataclass(frozen=True, kw_only=True)
class ProxyInfo:
    """The proxies in the environment of a node."""

    urls: Mapping[str, str] = field(default_factory=dict)
    """By variable, without passwords."""
    silent: Mapping[str, str] = field(default_factory=dict)
    """By URL, why a proxy accepts no connection."""
    used_by_ray: bool = False
    """Whether Ray sends its connections between nodes through a proxy."""


def inspect_proxies() -> ProxyInfo:
    """Read the environment of this process, and connect to each proxy once."""
    urls = proxies()
    errors = {url: _proxy_error(url) for url in urls.values()}
    return ProxyInfo(
        urls=urls,
        silent={url: error for url, error in errors.items() if error},
        used_by_ray=os.environ.get(_RAY_PROXY_VARIABLE, "").lower() in ("1", "true"),
    )


def _proxy_error(url: str) -> str:
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        return _connection_error(parts.hostname or "", parts.port or _PROXY_PORTS.get(parts.scheme, 1080))
    except ValueError as error:  # no port number
        return error_reason(error)


def check_proxies(info: ProxyInfo) -> list[Finding]:
    """Whether proxies work, and connections between nodes avoid them; empty without proxies. Pure."""
    if not info.urls:
        return []
    text = ", ".join(f"{name}={url}" for name, url in info.urls.items())
    if info.used_by_ray:
        remedy = f"unset {_RAY_PROXY_VARIABLE} wherever Ray is started"
        return [warn("proxy", f"{text}; with {_RAY_PROXY_VARIABLE} Ray reaches its own nodes through it", remedy)]
    if info.silent:
        reasons = ", ".join(f"{url}: {reason}" for url, reason in info.silent.items())
        remedy = "correct the variable, or unset it; s3:// storage and downloads of weights go through the proxy"
        return [warn("proxy", f"{text}; it accepts no connection ({reasons})", remedy)]
    return [ok("proxy", f"{text}, for storage and downloads; nodes reach each other without it")]
