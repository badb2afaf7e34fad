"""What every kind of storage speaks in."""

from __future__ import annotations

from dataclasses import dataclass

from pharmclf.core.errors import RunError, UserError


class StorageUnavailableError(OSError, RunError):
    """The storage did not answer for as long as we had patience; what was asked of it may succeed later."""


class WebAddressError(UserError, OSError):
    """The address of a web page, which is no storage."""


@dataclass(frozen=True)
class FileEntry:
    """One file of a listing, or what has the place of one."""

    location: str
    """Local path or URI, ready for `read_bytes`."""
    size_bytes: int
    mtime_ns: int = 0
    """Time of the last change, nanoseconds since 1970."""
    unreadable: str = ""
    """Why there is no file to read: a named pipe, a link that points nowhere, a name that is not UTF-8; "" for files.
    The location of such a name is for people: see `displayed`."""


def displayed(path: str) -> str:
    """A path as text that any file and console takes: bytes that are not UTF-8 become \\xe9, as `printf %b` reads."""
    raw = path.encode("utf-8", "surrogateescape")
    text = raw.decode("utf-8", "backslashreplace")
    return path if text == path else raw.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class Versioned:
    """A small file in one of its states."""

    content: bytes
    version: str
    """Tells this state from any other."""
    changed_s: float
    """Time of the last change by the storage's clock, seconds since 1970."""
