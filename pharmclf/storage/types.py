"""Values and errors of every kind of storage."""

from __future__ import annotations

from dataclasses import dataclass

from pharmclf.core.errors import RunError, UserError


class StorageUnavailableError(OSError, RunError):
    """The storage did not answer until the timeout; the request may succeed later."""


class WebAddressError(UserError, OSError):
    """A web address, which is not a storage."""


@dataclass(frozen=True)
class FileEntry:
    """An entry of a listing."""

    location: str
    """Local path or URI, ready for `read_bytes`."""
    size_bytes: int
    mtime_ns: int = 0
    """Time of the last change, nanoseconds since 1970."""
    unreadable: str = ""
    """Why it cannot be read: a named pipe, a broken link, a name that is not UTF-8; "" for files. A location
    that is not UTF-8 is for messages: see `displayed`."""


def displayed(path: str) -> str:
    """A path as text that any file and console takes: bytes that are not UTF-8 become \\xe9, as `printf %b` reads."""
    raw = path.encode("utf-8", "surrogateescape")
    text = raw.decode("utf-8", "backslashreplace")
    return path if text == path else raw.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class Versioned:
    """A small file in one state."""

    content: bytes
    version: str
    """Identifies this state."""
    changed_s: float
    """Time of the last change by the storage's clock, seconds since 1970."""
