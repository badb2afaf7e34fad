"""The one door to storage: local paths and URIs (s3://, gs://) through pyarrow's file systems.

A location is a string: a local path or a URI. Writes are whole or not at all: a local file is written beside its place
and renamed into it; an object store shows an object only when its upload is complete.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs


@dataclass(frozen=True)
class FileEntry:
    """One file of a listing."""

    location: str
    """Local path or URI, ready for `read_bytes`."""
    size_bytes: int
    mtime_ns: int = 0
    """Time of the last change, nanoseconds since 1970; 0 where the storage does not tell."""


def is_remote(location: str) -> bool:
    """Whether the location is a URI of an object store and not a local path."""
    return "://" in location and not location.startswith("file://")


def join(location: str, *parts: str) -> str:
    """Put parts behind a location with single slashes."""
    return "/".join([location.rstrip("/"), *(part.strip("/") for part in parts)])


def absolute(location: str) -> str:
    """A local path made absolute, so that workers with other working directories find it; a URI as it is."""
    return location if is_remote(location) else str(Path(location.removeprefix("file://")).expanduser().absolute())


def open_filesystem(location: str) -> tuple[fs.FileSystem, str]:
    """The file system of a location, and the path within it."""
    if is_remote(location):
        filesystem, path = fs.FileSystem.from_uri(location)  # honours AWS_ENDPOINT_URL, unlike S3FileSystem()
        return filesystem, path
    return fs.LocalFileSystem(), absolute(location)


def _scheme(location: str) -> str:
    return location.split("://", 1)[0] + "://" if is_remote(location) else ""


def list_files(location: str) -> Iterator[FileEntry]:
    """All files below a folder or prefix, at any depth, sorted by path.

    Raises:
        FileNotFoundError: no such folder.
        NotADirectoryError: a file stands there.
    """
    filesystem, path = open_filesystem(location)
    info = filesystem.get_file_info(path)
    if info.type == fs.FileType.File:
        raise NotADirectoryError(location)
    if info.type == fs.FileType.NotFound:
        raise FileNotFoundError(location)
    found = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    for item in sorted((item for item in found if item.type == fs.FileType.File), key=lambda item: item.path):
        yield FileEntry(_scheme(location) + item.path, item.size, item.mtime_ns or 0)


def list_folders(location: str) -> list[str]:
    """Names of the folders directly below a location, sorted; none where nothing stands."""
    filesystem, path = open_filesystem(location)
    found = filesystem.get_file_info(fs.FileSelector(path, recursive=False, allow_not_found=True))
    return sorted(item.base_name for item in found if item.type == fs.FileType.Directory)


def exists(location: str) -> bool:
    """Whether a file or folder stands there."""
    filesystem, path = open_filesystem(location)
    return bool(filesystem.get_file_info(path).type != fs.FileType.NotFound)


def is_file(location: str) -> bool:
    """Whether a file stands there."""
    filesystem, path = open_filesystem(location)
    return bool(filesystem.get_file_info(path).type == fs.FileType.File)


def read_bytes(location: str) -> bytes:
    """The whole content of a file.

    Raises:
        OSError: not there, or unreadable.
    """
    if not is_remote(location):
        return Path(absolute(location)).read_bytes()
    filesystem, path = open_filesystem(location)
    with filesystem.open_input_file(path) as file:
        return bytes(file.read())


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
        path.write_bytes(read_bytes(location))
        yield path


def write_bytes(location: str, content: bytes) -> None:
    """Write a file whole or not at all, replacing one that stands there; missing folders are made."""
    if is_remote(location):
        filesystem, path = open_filesystem(location)
        with filesystem.open_output_stream(path) as file:
            file.write(content)
        return
    target = Path(absolute(location))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(location: str) -> Any:
    """The value of a JSON file."""
    return json.loads(read_bytes(location))


def write_json(location: str, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all."""
    write_bytes(location, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def delete_file(location: str) -> None:
    """Delete a file; nothing happens where none stands."""
    filesystem, path = open_filesystem(location)
    if filesystem.get_file_info(path).type == fs.FileType.File:
        filesystem.delete_file(path)


def delete_folder(location: str) -> None:
    """Delete a folder and all below it; nothing happens where none stands."""
    filesystem, path = open_filesystem(location)
    if filesystem.get_file_info(path).type != fs.FileType.NotFound:
        filesystem.delete_dir(path)
