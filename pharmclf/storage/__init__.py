"""Storage on local disk, and in object stores by URI (s3://, gs://).

A location is a string: a local path or a URI. Writes are atomic: a local file is written under a temporary name and
renamed, an object is visible when its upload is complete. Transient errors of an object store (throttling, time-outs,
resets, 5xx) are retried with growing pauses for `PHARMCLF_STORAGE_PATIENCE_S` seconds (180).

Errors are `OSError`s that name the location: FileNotFoundError, PermissionError, `StorageUnavailableError`.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pharmclf.core.errors import ConfigError
from pharmclf.storage.local import BROKEN_LINK as BROKEN_LINK
from pharmclf.storage.local import LocalDisk
from pharmclf.storage.objects import ObjectStore, object_store
from pharmclf.storage.objects import timeout as timeout
from pharmclf.storage.objects import timeout_s as timeout_s
from pharmclf.storage.types import FileEntry as FileEntry
from pharmclf.storage.types import StorageUnavailableError as StorageUnavailableError
from pharmclf.storage.types import Versioned as Versioned
from pharmclf.storage.types import WebAddressError as WebAddressError
from pharmclf.storage.types import displayed as displayed

_CHUNK_BYTES = 8 << 20
_UPLOADS = 16  # concurrent uploads of a folder's files
_DISK = LocalDisk()


@contextlib.contextmanager
def errors_as_config_errors(location: str) -> Iterator[None]:
    """Raise a ConfigError where the block finds that the storage is missing or may not be read."""
    try:
        yield
    except (FileNotFoundError, PermissionError) as error:
        raise ConfigError(f"--storage {location}: {error}") from error


def nearest_existing(path: str) -> Path:
    """A local path, or the nearest folder around it that exists."""
    absolute_path = Path(path).absolute()
    return next(each for each in (absolute_path, *absolute_path.parents) if os.path.exists(each))


def is_remote(location: str) -> bool:
    """Whether a location is a URI of an object store, not a local path."""
    return "://" in location and not location.startswith("file://")


def place_word(location: str) -> str:
    """What errors call a location: a folder, or a prefix in an object store."""
    return "prefix" if is_remote(location) else "folder"


def join(location: str, *parts: str) -> str:
    """Append parts to a location with single slashes."""
    return "/".join([location.rstrip("/"), *(part.strip("/") for part in parts)])


def parent(location: str) -> str:
    """The folder or prefix that holds a location."""
    return os.path.dirname(location)  # "/" of a file in the root of the disk


def absolute(location: str) -> str:
    """A local path as an absolute one, for workers with other working directories; a URI unchanged."""
    return location if is_remote(location) else str(Path(location.removeprefix("file://")).expanduser().absolute())


def environment() -> dict[str, str]:
    """Variables of this process that configure storage, for processes on other machines; without secrets.

    Credentials come from each machine's role or files, or from the environment that the cluster or the submitted job
    gives to all its processes.
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
    """List all files below a folder or prefix, at any depth, sorted by path; remote ones page by page.

    Raises:
        FileNotFoundError: no such folder, no such bucket.
        NotADirectoryError: it is a file.
    """
    return (entry for entry in list_entries(location) if not entry.unreadable)


def list_entries(location: str, pardon: Callable[[str], bool] | None = None) -> Iterator[FileEntry]:
    """As `list_files`, and also entries that cannot be read, each with its reason.

    Args:
        pardon: whether a local folder that may not be read is left out; None: no folder is.
    """
    backend, path = _open(location)
    yield from backend.list_entries(path, pardon)


def list_folders(location: str) -> list[str]:
    """Names of the folders directly below a location, sorted; none where it does not exist."""
    backend, path = _open(location)
    return backend.list_folders(path)


def exists(location: str) -> bool:
    """Whether a file or folder exists."""
    backend, path = _open(location)
    return backend.size_of(path) is not None or backend.has_folder(path)


def is_file(location: str) -> bool:
    """Whether a file exists."""
    backend, path = _open(location)
    return backend.size_of(path) is not None


def read_bytes(location: str) -> bytes:
    """Read a file.

    Raises:
        OSError: missing, or unreadable.
    """
    backend, path = _open(location)
    return backend.read(path)


def read_chunks(location: str) -> Iterator[bytes]:
    """Read a file in pieces of some megabytes.

    Raises:
        OSError: missing, or unreadable.
    """
    backend, path = _open(location)
    yield from backend.read_chunks(path, _CHUNK_BYTES)


def download(location: str, target: Path, progress: Callable[[int], None] | None = None) -> None:
    """Copy a file to a local path; `progress` is called with the bytes written so far.

    Raises:
        OSError: missing, unreadable, or the disk is full.
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
    """A local path of a file: its own, or that of a copy which is deleted after the block.

    Raises:
        OSError: missing, or unreadable.
    """
    if not is_remote(location):
        yield Path(absolute(location))
        return
    with tempfile.TemporaryDirectory(prefix="pharmclf-") as folder:
        path = Path(folder) / location.rsplit("/", 1)[-1]
        download(location, path)
        yield path


def write_bytes(location: str, content: bytes) -> None:
    """Write or replace a file atomically; missing folders are created."""
    backend, path = _open(location)
    backend.write(path, content)


def copy_file(source: Path, location: str) -> None:
    """Copy a local file to a location atomically."""
    backend, path = _open(location)
    backend.write(path, source)


def upload_folder(source: Path, location: str, last: str = "") -> None:
    """Copy a local folder; the file named `last` is copied last, and shows that the copy is complete."""
    names = [str(path.relative_to(source)) for path in sorted(source.rglob("*")) if path.is_file()]
    with ThreadPoolExecutor(_UPLOADS) as pool:
        copies = [
            pool.submit(contextvars.copy_context().run, copy_file, source / name, join(location, name))
            for name in names  # each with the `timeout` of this thread
            if name != last
        ]
    for copy in copies:
        copy.result()
    if last:
        copy_file(source / last, join(location, last))


def read_json(location: str) -> Any:
    """The value of a JSON file."""
    return json.loads(read_bytes(location))


def write_json(location: str, value: Any) -> None:
    """Write a value as indented JSON atomically."""
    write_bytes(location, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_versioned(location: str) -> Versioned | None:
    """Read a file with its version, for `compare_and_swap`; None where it does not exist."""
    backend, path = _open(location)
    return backend.read_versioned(path)


def compare_and_swap(location: str, content: bytes, version: str | None) -> str | None:
    """Write a small file only if it has not changed since it was read.

    Args:
        location: the file.
        content: must be unique to the writer (by a name, a number, a time): of two that write equal content at the same
            time, both may succeed.
        version: of the `Versioned` that was read; None: only if no file exists.

    Returns:
        The new version; None: the file has changed, and nothing was written.
    """
    backend, path = _open(location)
    return backend.compare_and_swap(path, content, version)


def delete_file(location: str) -> None:
    """Delete a file, if it exists."""
    backend, path = _open(location)
    backend.delete(path)


def delete_folder(location: str) -> None:
    """Delete a folder with its content, if it exists."""
    backend, path = _open(location)
    backend.delete_prefix(path)
