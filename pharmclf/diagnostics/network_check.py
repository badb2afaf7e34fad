"""Which node cannot reach which: workers exchange gradients through ports of their own choice, Ray through others."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pharmclf.core.errors import error_reason
from pharmclf.core.units import format_examples
from pharmclf.diagnostics.results import Finding, fail, ok

_TIMEOUT_S = 3.0
_MAX_CONNECTIONS = 64
_SHOWN = 6
WORKERS = "of a worker"


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A port of a node that other nodes must reach."""

    address: str
    port: int
    what: str
    """Whose it is, in words."""


class PortListener:
    """A port of the system's choice that takes connections, as that of a worker does."""

    def __init__(self, address: str) -> None:
        """Open it on an address of this node."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._server = socket.create_server((address, 0), family=family, backlog=_MAX_CONNECTIONS)
        self._thread = threading.Thread(target=self._accept, name="listener", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """That it listens on."""
        return int(self._server.getsockname()[1])

    def close(self) -> None:
        """Close the port."""
        with contextlib.suppress(OSError):  # wakes the thread up
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it is closed
            while True:
                self._server.accept()[0].close()


def try_connect(doors: Sequence[Endpoint]) -> list[str]:
    """Try to connect to each -> why it failed, "" where it did not."""
    if not doors:
        return []
    with ThreadPoolExecutor(min(_MAX_CONNECTIONS, len(doors))) as pool:
        return list(pool.map(_try_connect, doors))


def _try_connect(door: Endpoint) -> str:
    try:
        with socket.create_connection((door.address, door.port), timeout=_TIMEOUT_S):
            return ""
    except TimeoutError:
        return f"no answer within {_TIMEOUT_S:g} s"
    except OSError as error:
        return error_reason(error)


def check_network(tried: Mapping[str, Sequence[tuple[Endpoint, str]]]) -> Finding:
    """Whether every node reaches every other.

    Args:
        tried: for each node, by its address, the doors of other nodes that it has knocked at, and what `try_connect`
            said.
    """
    failed = [(node, door, why) for node, found in tried.items() for door, why in found if why]
    num = sum(len(found) for found in tried.values())
    if not failed:
        return ok("network", f"all {len(tried)} nodes reach each other ({num} connections tried)")
    pairs: dict[tuple[str, str], list[str]] = {}
    for node, door, why in failed:
        pairs.setdefault((node, door.address), []).append(f"{door.port} {door.what}: {why}")
    listed = [f"{node} cannot reach {address} (port {', '.join(ports)})" for (node, address), ports in pairs.items()]
    remedy = (
        "open all TCP ports between the nodes, in security groups and firewalls: workers listen on ports of the "
        "system's choice (/proc/sys/net/ipv4/ip_local_port_range)"
    )
    return fail("network", format_examples(listed, _SHOWN, "; "), remedy)
