"""Local disk and mounted file systems."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from pharmclf.storage.types import FileEntry, Versioned, displayed

BROKEN_LINK = "link that points nowhere"
NOT_UTF8 = "the name is not UTF-8: rename the file, for example with convmv"


class LocalDisk:
    """Files by absolute path."""

    def list_entries(self, path: str, pardon: Callable[[str], bool] | None = None) -> Iterator[FileEntry]:
        """All entries below a folder, sorted by path; links to folders are followed.

        A folder is listed once, by its own path rather than by a link, so links in a circle end.
        """
        if os.path.isfile(path):
            raise NotADirectoryError(path)
        if not os.path.isdir(path):
            raise FileNotFoundError(path)
        yield from sorted(_walk(path, pardon), key=lambda entry: entry.location)

    def list_folders(self, path: str) -> list[str]:
        """Names of the folders directly below."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return sorted(entry.name for entry in os.scandir(path) if entry.is_dir())
        return []

    def has_folder(self, path: str) -> bool:
        """Whether a folder exists."""
        return os.path.isdir(path)

    def size_of(self, path: str) -> int | None:
        """Bytes of a file; None where it does not exist."""
        return os.path.getsize(path) if os.path.isfile(path) else None

    def read(self, path: str) -> bytes:
        """The whole content."""
        _check_regular(path)
        return Path(path).read_bytes()

    def read_chunks(self, path: str, chunk_bytes: int) -> Iterator[bytes]:
        """The content in pieces."""
        _check_regular(path)
        with open(path, "rb") as file:
            while chunk := file.read(chunk_bytes):
                yield chunk

    def write(self, path: str, content: bytes | Path) -> None:
        """Write under a temporary name, then rename."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            with temporary.open("wb") as file:
                if isinstance(content, Path):
                    with content.open("rb") as source:
                        shutil.copyfileobj(source, file)
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def read_versioned(self, path: str) -> Versioned | None:
        """A file with its version, the inode and time of change: every write makes a new inode."""
        try:
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                return Versioned(file.read(), f"{status.st_ino}-{status.st_mtime_ns}", status.st_mtime)
        except FileNotFoundError:
            return None

    def compare_and_swap(self, path: str, content: bytes, version: str | None) -> str | None:
        """Compare and write under a lock that the system releases when its holder dies."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.with_name(f".{target.name}.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            existing = self.read_versioned(path)
            if (existing.version if existing else None) != version:
                return None
            self.write(path, content)
            written = self.read_versioned(path)
            return written.version if written else None

    def delete(self, path: str) -> None:
        """Delete a file."""
        if os.path.isfile(path):
            Path(path).unlink(missing_ok=True)

    def delete_prefix(self, path: str) -> None:
        """Delete a folder with its content."""
        if os.path.isdir(path):
            shutil.rmtree(path, onerror=_raise_unless_gone)


def _raise_unless_gone(_function: object, _path: str, info: tuple[object, BaseException, object]) -> None:
    """Pass over what another process has deleted."""
    if not isinstance(info[1], FileNotFoundError):
        raise info[1]


def _walk(top: str, pardon: Callable[[str], bool] | None) -> Iterator[FileEntry]:
    """Yield the entries below a folder, unordered; `pardon`: whether a folder that may not be read is left out."""
    real = os.path.realpath(top)
    above = {real[:place] or "/" for place, letter in enumerate(real) if letter == "/"}
    entered = set[str]()
    folders, links, hidden = deque([(top, real)]), deque[str](), deque[tuple[str, str]]()
    while folders or links or hidden:
        if links and not folders:  # links come after plain folders, but before hidden ones
            folder = links.popleft()
            real = os.path.realpath(folder)
            if real in entered or real in above:
                is_above = f"{os.path.realpath(os.path.dirname(folder))}/".startswith(f"{real.rstrip('/')}/")
                where = "above" if is_above else "that is listed already"
                yield FileEntry(displayed(folder), 0, 0, f"link to a folder {where}, {displayed(real)}")
                continue
        else:
            folder, real = (folders or hidden).popleft()
            if real in entered:
                continue
        entered.add(real)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except FileNotFoundError:  # another process has deleted it
            continue
        except OSError as error:
            if pardon is None or not pardon(folder):
                raise
            yield FileEntry(displayed(folder), 0, 0, f"folder that may not be read: {error.strerror}")
            continue
        for entry in entries:
            if not _is_folder(entry):
                yield from _entry(entry)
            elif entry.is_symlink():
                links.append(entry.path)
            else:
                inner = (entry.path, os.path.join(real, entry.name))
                (hidden if entry.name.startswith(".") else folders).append(inner)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def _entry(entry: os.DirEntry[str]) -> Iterator[FileEntry]:
    """Yield a file, or why it cannot be read; nothing where another process has deleted it."""
    location = displayed(entry.path)
    try:
        status = entry.stat()
    except OSError as error:
        if entry.is_symlink():
            yield FileEntry(location, 0, 0, _broken_link(error))
        elif not isinstance(error, FileNotFoundError):
            raise
        return
    reason = _kind(status.st_mode) or ("" if location == entry.path else NOT_UTF8)
    yield FileEntry(location, status.st_size, status.st_mtime_ns, reason)


def _broken_link(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "link in a circle"
    gone = isinstance(error, (FileNotFoundError, NotADirectoryError))
    return BROKEN_LINK if gone else f"link that cannot be followed: {error.strerror}"


def _kind(mode: int) -> str:
    """The kind of anything but a regular file; "" for one."""
    if stat.S_ISREG(mode):
        return ""
    if stat.S_ISFIFO(mode):
        return "named pipe, not a file"
    return "socket, not a file" if stat.S_ISSOCK(mode) else "device, not a file"


def _check_regular(path: str) -> None:
    """Raise an OSError for a file whose reader could wait forever, such as a named pipe."""
    mode = os.stat(path).st_mode
    if not stat.S_ISDIR(mode) and (kind := _kind(mode)):  # `open` refuses folders
        raise OSError(errno.EINVAL, kind, path)
