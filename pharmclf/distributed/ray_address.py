"""Checks that a Ray cluster answers at RAY_ADDRESS, without Ray, which would retry for 15 minutes."""

from __future__ import annotations

import os
import socket
import time
from urllib.parse import urlsplit

from pharmclf.core.errors import ConfigError, error_reason

VARIABLE = "RAY_ADDRESS"
FIND_LOCAL = "auto"
_TIMEOUT_S = 12.0
_CONNECT_TIMEOUT_S = 4.0
_RETRY_S = 0.5
# the preface of an HTTP/2 client with an empty frame of settings; a gRPC server answers with its settings
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_HEADER_BYTES, _TYPE_AT, _SETTINGS = 9, 3, 4
_REMEDY = (
    f"`unset {VARIABLE}` starts Ray on this machine alone; otherwise start that cluster (`ray start --head`), or set "
    f"{VARIABLE} to HOST:PORT of the head of one that runs"
)


def requested_address() -> str:
    """The value of RAY_ADDRESS; "": this process starts Ray."""
    address = os.environ.get(VARIABLE, "").strip()
    return "" if address == "local" else address


def check_address(address: str, *, resolved: str = "", timeout_s: float | None = None) -> None:
    """Check that a cluster answers, before Ray joins it.

    Args:
        address: value of RAY_ADDRESS.
        resolved: HOST:PORT that Ray found for `auto`.
        timeout_s: for an answer; None: twelve seconds.

    Raises:
        ConfigError: nothing that speaks gRPC answers, or the address has an unsupported form.
    """
    if "://" in address:
        raise ConfigError(
            f"{VARIABLE}: received {address!r}, expected HOST:PORT of the cluster's head, such as 10.0.0.5:6379. "
            "Addresses with :// are those of the job server and of Ray's client: submit the job instead (`ray job "
            f"submit --address http://HEAD:8265 --working-dir . -- python …`), or `unset {VARIABLE}` to start Ray on "
            "this machine alone"
        )
    if reason := _unreachable_reason(resolved or address, _TIMEOUT_S if timeout_s is None else timeout_s):
        found = f" ({resolved})" if resolved else ""
        raise ConfigError(
            f"{VARIABLE}: received {address!r}, but no Ray cluster answers there{found}: {reason}. {_REMEDY}"
        )


def cluster_not_found_error() -> ConfigError:
    """The error for `auto` if no Ray runs on this machine."""
    return ConfigError(f"{VARIABLE}: received {FIND_LOCAL!r}, but no Ray runs on this machine. {_REMEDY}")


def _unreachable_reason(address: str, timeout_s: float) -> str:
    """Why no gRPC server answers at HOST:PORT; "": one answers."""
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        return "it is not of the form HOST:PORT"
    until = time.monotonic() + timeout_s
    while True:
        began = time.monotonic()
        reason = _try_connect(host, port, min(_CONNECT_TIMEOUT_S, max(0.1, until - began)))
        if not reason or time.monotonic() + _RETRY_S >= until:
            return reason
        time.sleep(_RETRY_S)


def _try_connect(host: str, port: int, limit_s: float) -> str:
    try:
        with socket.create_connection((host, port), timeout=limit_s) as connection:
            if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                return ""  # what follows would be encrypted
            connection.sendall(_PREFACE)
            answer = b""
            while len(answer) < _HEADER_BYTES and (part := connection.recv(_HEADER_BYTES - len(answer))):
                answer += part
    except TimeoutError:
        return f"no answer in {limit_s:.0f} s"
    except OSError as error:
        return error_reason(error)
    is_grpc = len(answer) == _HEADER_BYTES and answer[_TYPE_AT] == _SETTINGS
    return "" if is_grpc else "another program listens on that port"
