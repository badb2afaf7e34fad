"""Whether all nodes have the same programs: versions of what decides a result, and the code of this package itself."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pharmclf
from pharmclf.core.hashing import fingerprint, sha256_file
from pharmclf.diagnostics.results import Finding, fail, ok, warn

_PACKAGES = ("ray", "tensorflow", "keras", "numpy")
_SHOWN_DIGITS = 8
LACKS_PACKAGE = (
    "submit with `ray job submit --working-dir .`, which brings this package to every node, and install its "
    "dependencies on all of them"
)
"""The remedy for a node that cannot import this package."""


@dataclass(frozen=True, kw_only=True)
class Packages:
    """The programs of a node."""

    versions: Mapping[str, str]
    """Of Python and the packages; "" where one is not installed."""
    code: str
    """Fingerprint of the code of pharmclf as this process imports it."""


def inspect_packages() -> Packages:
    """Those that this process uses; none of them is imported for it."""
    versions = {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}
    return Packages(versions=versions, code=code_fingerprint(Path(pharmclf.__file__).parent))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def code_fingerprint(folder: Path) -> str:
    """Fingerprint of all Python files below a folder, by names and contents."""
    return fingerprint({str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*.py"))})


def check_packages(own: Packages, others: Packages) -> Finding:
    """Whether a node has the same as the driver.

    A third number that differs is a warning, for such versions work together; any other difference is not.

    Args:
        own: the driver's.
        others: the node's.
    """
    here, there = dict(own.versions), dict(others.versions)
    differing = {name: (there.get(name, ""), here[name]) for name in here if there.get(name, "") != here[name]}
    parts = [f"{name} {a or 'missing'}, the driver has {b or 'none'}" for name, (a, b) in differing.items()]
    if own.code != others.code:
        parts.append(f"pharmclf's code {others.code[:_SHOWN_DIGITS]}, the driver has {own.code[:_SHOWN_DIGITS]}")
    if not parts:
        shown = ", ".join(f"{name} {version}" for name, version in there.items())
        return ok("versions", f"{shown}, pharmclf's code {others.code[:_SHOWN_DIGITS]}, as the driver's")
    small = all(_branch(a) == _branch(b) for a, b in differing.values()) and own.code == others.code
    remedy = "install the driver's versions on this node, and restart its Ray"
    if own.code != others.code:
        remedy = (
            "submit with `ray job submit --working-dir .`, which brings the driver's code to every node, or install "
            "it on this node; what else is wrong here was not examined"
        )
    return (warn if small else fail)("versions", "; ".join(parts), remedy)


def _branch(version: str) -> tuple[str, ...]:
    """Its first two numbers."""
    return tuple(version.split(".")[:2])
