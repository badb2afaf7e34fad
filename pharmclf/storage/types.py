"""What every kind of storage speaks in."""

from __future__ import annotations

from dataclasses import dataclass


class StorageUnavailable(OSError):
    """The storage did not answer for as long as we had patience; what was asked of it may succeed later."""


@dataclass(frozen=True)
class FileEntry:
    """One file of a listing."""

    location: str
    """Local path or URI, ready for `read_bytes`."""
    size_bytes: int
    mtime_ns: int = 0
    """Time of the last change, nanoseconds since 1970."""


@dataclass(frozen=True)
class Versioned:
    """A small file in one of its states."""

    content: bytes
    version: str
    """Tells this state from any other."""
    changed_s: float
    """Time of the last change by the storage's clock, seconds since 1970."""
