"""Local disk, and what is mounted like one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from pharmclf.storage.types import FileEntry, Versioned


class LocalDisk:
    """Files by absolute path."""

    def list_files(self, path: str) -> Iterator[FileEntry]:
        """All files below a folder, sorted by path."""
        if os.path.isfile(path):
            raise NotADirectoryError(path)
        if not os.path.isdir(path):
            raise FileNotFoundError(path)

        def refuse(error: OSError) -> None:
            raise error

        found = []
        for folder, _, names in os.walk(path, onerror=refuse, followlinks=True):
            found += [os.path.join(folder, name) for name in names]
        for file in sorted(found):
            try:
                status = os.stat(file)
            except FileNotFoundError:  # another process has deleted it since
                continue
            yield FileEntry(file, status.st_size, status.st_mtime_ns)

    def list_folders(self, path: str) -> list[str]:
        """Names of the folders directly below."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return sorted(entry.name for entry in os.scandir(path) if entry.is_dir())
        return []

    def has_folder(self, path: str) -> bool:
        """Whether a folder stands there."""
        return os.path.isdir(path)

    def size_of(self, path: str) -> int | None:
        """Bytes of a file; None where none stands."""
        return os.path.getsize(path) if os.path.isfile(path) else None

    def read(self, path: str) -> bytes:
        """The whole content."""
        return Path(path).read_bytes()

    def read_chunks(self, path: str, chunk_bytes: int) -> Iterator[bytes]:
        """The content in pieces."""
        with open(path, "rb") as file:
            while chunk := file.read(chunk_bytes):
                yield chunk

    def write(self, path: str, content: bytes | Path) -> None:
        """Write beside the place, then rename into it."""
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
        """A file with its version: inode and time of change, since every write makes a new inode."""
        try:
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                return Versioned(file.read(), f"{status.st_ino}-{status.st_mtime_ns}", status.st_mtime)
        except FileNotFoundError:
            return None

    def write_if(self, path: str, content: bytes, version: str | None) -> str | None:
        """Compare and write under a lock that the system releases when its holder dies."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.with_name(f".{target.name}.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = self.read_versioned(path)
            if (found.version if found else None) != version:
                return None
            self.write(path, content)
            written = self.read_versioned(path)
            return written.version if written else None

    def delete(self, path: str) -> None:
        """Delete a file."""
        if os.path.isfile(path):
            Path(path).unlink(missing_ok=True)

    def delete_below(self, path: str) -> None:
        """Delete a folder and all below it."""
        if os.path.isdir(path):
            shutil.rmtree(path)
