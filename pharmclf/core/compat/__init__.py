"""The private and undocumented parts of other packages that this project uses, one function or mixin each.

Each docstring says what its function does and why no public API does it. Each has a test that proves the behaviour with
the installed version, so that an upgrade shows here what it breaks. A function imports its package when it is called.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterator

from pharmclf.core.errors import RunError

KNOWN_VERSIONS = {"ray": ("2.60.0",), "keras": ("3.15.0", "3.15.1"), "tyro": ("1.0.17",)}
"""Versions that are known to have every part used here, oldest first."""


class IncompatibleVersionError(RunError):
    """An installed package lacks a private part that this project uses."""

    def __init__(self, package: str, reason: str) -> None:
        """Name the installed version and those that work.

        Args:
            package: name of the distribution, a key of `KNOWN_VERSIONS`.
            reason: what is missing.
        """
        known = KNOWN_VERSIONS[package]
        super().__init__(
            f"{package}: received version {importlib.metadata.version(package)}, expected one known to work "
            f"({', '.join(known)}): {reason}. Run pip install '{package}=={known[-1]}'"
        )


@contextlib.contextmanager
def private_parts(package: str) -> Iterator[None]:
    """Report a missing private module or attribute as an `IncompatibleVersionError`."""
    try:
        yield
    except (ImportError, AttributeError) as error:
        raise IncompatibleVersionError(package, str(error)) from error
