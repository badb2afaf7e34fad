"""The proxies of a node: storage and downloads go through them, connections between nodes do not."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pharmclf.core.errors import error_reason
from pharmclf.diagnostics.results import Finding, ok, warn
from pharmclf.training.proxy import proxies

_CONNECT_S = 3.0
_RAY_VARIABLE = "RAY_grpc_enable_http_proxy"
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, kw_only=True)
class ProxyInfo:
    """What the environment of a node says of proxies."""

    urls: Mapping[str, str] = field(default_factory=dict)
    """By variable, without passwords."""
    silent: Mapping[str, str] = field(default_factory=dict)
    """Why a proxy takes no connection, by its URL."""
    used_by_ray: bool = False
    """Whether Ray sends its own connections between nodes there."""


def inspect_proxies() -> ProxyInfo:
    """Look at the environment of this process, and connect to each proxy once."""
    urls = proxies()
    tried = {url: _try_connect(url) for url in dict.fromkeys(urls.values())}
    return ProxyInfo(
        urls=urls,
        silent={url: reason for url, reason in tried.items() if reason},
        used_by_ray=os.environ.get(_RAY_VARIABLE, "").lower() in ("1", "true"),
    )


def _try_connect(url: str) -> str:
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        address = parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 1080)
        with socket.create_connection(address, timeout=_CONNECT_S):
            return ""
    except TimeoutError:
        return f"no answer in {_CONNECT_S:g} s"
    except (OSError, ValueError) as error:
        return error_reason(error)


def check_proxies(facts: ProxyInfo) -> list[Finding]:
    """Whether proxies can be used, and stay out of the connections between nodes; pure. Empty where there are none."""
    if not facts.urls:
        return []
    text = ", ".join(f"{name}={url}" for name, url in facts.urls.items())
    if facts.used_by_ray:
        remedy = f"unset {_RAY_VARIABLE} wherever Ray is started"
        return [warn("proxy", f"{text}; with {_RAY_VARIABLE} Ray reaches its own nodes through it", remedy)]
    if facts.silent:
        reasons = ", ".join(f"{url}: {reason}" for url, reason in facts.silent.items())
        remedy = "correct the variable, or unset it; s3:// storage and downloads of weights go through the proxy"
        return [warn("proxy", f"{text}; it takes no connection ({reasons})", remedy)]
    return [ok("proxy", f"{text}, for storage and downloads; nodes reach each other without it")]
