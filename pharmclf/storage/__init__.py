"""The one door to storage: local disk, and object stores by URI (s3://, gs://).

A location is a string: a local path or a URI. Writes are whole or not at all: a local file is written beside its place
and renamed into it, an object is seen when its upload is complete. What an object store refuses for a moment
(throttling, time-outs, resets, 5xx) is tried again with growing pauses for `PHARMCLF_STORAGE_PATIENCE_S` seconds (180).

Errors are `OSError`s that name the location: FileNotFoundError, PermissionError, `StorageUnavailableError`.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pharmclf.storage.local import BROKEN_LINK, LocalDisk
from pharmclf.storage.objects import ObjectStore, object_store, timeout, timeout_s
from pharmclf.storage.types import FileEntry, StorageUnavailableError, Versioned, WebAddressError, displayed

__all__ = [
    "BROKEN_LINK",
    "FileEntry",
    "StorageUnavailableError",
    "Versioned",
    "WebAddressError",
    "absolute",
    "compare_and_swap",
    "copy_file",
    "delete_file",
    "delete_folder",
    "displayed",
    "download",
    "environment",
    "exists",
    "is_file",
    "is_remote",
    "join",
    "list_entries",
    "list_files",
    "list_folders",
    "local_file",
    "read_bytes",
    "read_chunks",
    "read_json",
    "read_versioned",
    "timeout",
    "timeout_s",
    "upload_folder",
    "write_bytes",
    "write_json",
]  # fmt: skip

_CHUNK_BYTES = 8 << 20
_UPLOADS = 16  # concurrent uploads of a folder's files
_DISK = LocalDisk()


def is_remote(location: str) -> bool:
    """Whether the location is a URI of an object store and not a local path."""
    return "://" in location and not location.startswith("file://")


def join(location: str, *parts: str) -> str:
    """Put parts behind a location with single slashes."""
    return "/".join([location.rstrip("/"), *(part.strip("/") for part in parts)])


def absolute(location: str) -> str:
    """A local path made absolute, so that workers with other working directories find it; a URI as it is."""
    return location if is_remote(location) else str(Path(location.removeprefix("file://")).expanduser().absolute())


def environment() -> dict[str, str]:
    """Variables of this process that decide how storage is reached, for processes on other machines; no secrets.

    Credentials are not among them: they come from each machine's role or files, or from the environment that the
    cluster or the submitted job gives to all its processes.
    """
    shared = {"AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE"}
    prefixes = ("AWS_ENDPOINT_URL", "PHARMCLF_STORAGE_")
    return {name: value for name, value in os.environ.items() if name in shared or name.startswith(prefixes)}


def _open(location: str) -> tuple[LocalDisk | ObjectStore, str]:
    if not is_remote(location):
        return _DISK, absolute(location)
    root, _, key = location.partition("://")[2].partition("/")
    return object_store(f"{location.partition('://')[0]}://{root}"), key.strip("/")


def list_files(location: str) -> Iterator[FileEntry]:
    """All files below a folder or prefix, at any depth, sorted by path; a remote listing comes page by page.

    Raises:
        FileNotFoundError: no such folder, no such bucket.
        NotADirectoryError: a file stands there.
    """
    return (entry for entry in list_entries(location) if not entry.unreadable)


def list_entries(location: str, pardon: Callable[[str], bool] | None = None) -> Iterator[FileEntry]:
    """As `list_files`, with what has the place of a file and cannot be read, each with its reason.

    Args:
        location: folder or prefix.
        pardon: says of a local folder that may not be read whether it is left out; None: no folder is.
    """
    backend, path = _open(location)
    yield from backend.list_entries(path, pardon)


def list_folders(location: str) -> list[str]:
    """Names of the folders directly below a location, sorted; none where nothing stands."""
    backend, path = _open(location)
    return backend.list_folders(path)


def exists(location: str) -> bool:
    """Whether a file or folder stands there."""
    backend, path = _open(location)
    return backend.size_of(path) is not None or backend.has_folder(path)


def is_file(location: str) -> bool:
    """Whether a file stands there."""
    backend, path = _open(location)
    return backend.size_of(path) is not None


def read_bytes(location: str) -> bytes:
    """The whole content of a file.

    Raises:
        OSError: not there, or unreadable.
    """
    backend, path = _open(location)
    return backend.read(path)


def read_chunks(location: str) -> Iterator[bytes]:
    """The content of a file in pieces of some megabytes, for files too large to hold.

    Raises:
        OSError: not there, or unreadable.
    """
    backend, path = _open(location)
    yield from backend.read_chunks(path, _CHUNK_BYTES)


def download(location: str, target: Path, progress: Callable[[int], None] | None = None) -> None:
    """Copy a file to a local path; `progress` is called with the bytes written so far.

    Raises:
        OSError: not there, unreadable, or the disk is full.
    """
    done = 0
    with target.open("wb") as file:
        for chunk in read_chunks(location):
            file.write(chunk)
            done += len(chunk)
            if progress:
                progress(done)


@contextlib.contextmanager
def local_file(location: str) -> Iterator[Path]:
    """A local path for libraries that read nothing else: the file itself, or a copy that is deleted behind.

    Raises:
        OSError: not there, or unreadable.
    """
    if not is_remote(location):
        yield Path(absolute(location))
        return
    with tempfile.TemporaryDirectory(prefix="pharmclf-") as folder:
        path = Path(folder) / location.rsplit("/", 1)[-1]
        download(location, path)
        yield path


def write_bytes(location: str, content: bytes) -> None:
    """Write a file whole or not at all, replacing one that stands there; missing folders are made."""
    backend, path = _open(location)
    backend.write(path, content)


def copy_file(source: Path, location: str) -> None:
    """Write a local file to a location, whole or not at all."""
    backend, path = _open(location)
    backend.write(path, source)


def upload_folder(source: Path, location: str, last: str = "") -> None:
    """Copy a local folder; the file named `last` comes behind all others, for a sign that the copy is complete."""
    files = [str(path.relative_to(source)) for path in sorted(source.rglob("*")) if path.is_file()]
    copies = [
        functools.partial(contextvars.copy_context().run, copy_file, source / name, join(location, name))
        for name in files  # each with the `timeout` of this thread
        if name != last
    ]
    with ThreadPoolExecutor(_UPLOADS) as pool:
        list(pool.map(lambda copy: copy(), copies))
    if last:
        copy_file(source / last, join(location, last))


def read_json(location: str) -> Any:
    """The value of a JSON file."""
    return json.loads(read_bytes(location))


def write_json(location: str, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all."""
    write_bytes(location, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_versioned(location: str) -> Versioned | None:
    """A file with what tells this state of it from any other, for `compare_and_swap`; None where none stands."""
    backend, path = _open(location)
    return backend.read_versioned(path)


def compare_and_swap(location: str, content: bytes, version: str | None) -> str | None:
    """Write a small file only if it is still as it was read.

    Args:
        location: the file.
        content: what it shall hold; something in it must be the writer's own (a name, a number, a time), since two who
            write the same at once may both be told that it went through.
        version: of the `Versioned` that was read; None: only if no file stands there.

    Returns:
        The new version; None: it is another by now, and nothing was written.
    """
    backend, path = _open(location)
    return backend.compare_and_swap(path, content, version)


def delete_file(location: str) -> None:
    """Delete a file; nothing happens where none stands."""
    backend, path = _open(location)
    backend.delete(path)


def delete_folder(location: str) -> None:
    """Delete a folder and all below it; nothing happens where none stands."""
    backend, path = _open(location)
    backend.delete_prefix(path)
