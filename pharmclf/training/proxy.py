"""Reaches the nodes of a cluster without the proxies that the environment names; other hosts are not affected.

TensorFlow's workers connect by gRPC, which sends connections between nodes to `http_proxy` as well, where they hang.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

_KINDS = ("grpc_proxy", "https_proxy", "http_proxy", "all_proxy")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_ALL = "*"


def proxies(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The proxies of an environment by variable, without user and password; pure."""
    names = [name for kind in _KINDS for name in (kind, kind.upper())]
    return {name: re.sub(r"^(\w+://)?.*@", r"\1…@", environment[name]) for name in names if environment.get(name)}


def exceptions_for(hosts: Iterable[str], environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables with which hosts are reached without a proxy; pure.

    Only those hosts are added, so that object storage and downloads keep their way.

    Args:
        hosts: names or addresses, without ports.

    Returns:
        What changes: `no_proxy`, `NO_PROXY`, and `no_grpc_proxy`, which gRPC reads in place of `no_proxy`. Empty where
        the environment names no proxy, or the hosts are in all of them.
    """
    if not proxies(environment):
        return {}
    lower, upper = environment.get("no_proxy", ""), environment.get("NO_PROXY", "")
    # "*" alone means every host to most clients, and nothing to gRPC
    general = lower or upper
    before = {
        "no_proxy": general,
        "NO_PROXY": upper or lower,
        "no_grpc_proxy": environment.get("no_grpc_proxy") or ("" if general.strip() == _ALL else general),
    }
    added = list(dict.fromkeys([*_LOOPBACK, *hosts]))
    changed = {}
    for name, value in before.items():
        entries = [entry.strip() for entry in value.split(",") if entry.strip()]
        if entries != [_ALL]:
            value = ",".join([*entries, *(host for host in added if host not in entries)])
        if value != environment.get(name, ""):
            changed[name] = value
    return changed


def reach_directly(hosts: Iterable[str]) -> None:
    """Let this process, and those that it starts, reach hosts without a proxy."""
    os.environ.update(exceptions_for(hosts))
