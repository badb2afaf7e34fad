"""Room and speed of the disks of a node that a run writes to, beside the storage."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.core.errors import error_reason
from pharmclf.core.units import format_size
from pharmclf.diagnostics.results import Finding, fail, ok, warn
from pharmclf.feature_cache import local_cache
from pharmclf.training.checkpoint_manager import staging_dir

RAY_USE = "Ray"
_PIECE_BYTES, _MAX_BYTES = 1 << 20, 64 << 20  # of the file whose writing is timed
_TIME_LIMIT_S = 2.0
_MIN_BYTES, _SCARCE_BYTES = 100 << 20, 2 << 30
_RAY_FULL_SHARE = 0.95  # from here on Ray makes no objects that do not fit its object store
_SLOW_BYTES_PER_S = 20e6


@dataclass(frozen=True, kw_only=True)
class Disk:
    """A file system."""

    path: str
    """One of the folders on it."""
    uses: tuple[str, ...]
    """What a run writes there, in words."""
    free_bytes: int = 0
    total_bytes: int = 0
    write_bytes_per_s: float | None = None
    """Through to the disk; None: not measured."""
    read_bytes_per_s: float | None = None
    error: str = ""
    """Why it cannot be written."""


def paths_written_by(config: RunConfig, ray_folder: str = "") -> dict[str, str]:
    """What a run writes to a node's own disks -> the folder.

    Args:
        config: the run.
        ray_folder: where this node's Ray keeps its files; "": where a Ray that is started now would.
    """
    found = {"temporary files": tempfile.gettempdir()}
    found[RAY_USE] = ray_folder or os.path.join(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "ray")
    if storage.is_remote(config.storage):
        found["checkpoints that wait for their upload"] = str(Path(staging_dir("")).parent)
        if config.activations != "never":
            found["the cache of activations"] = str(local_cache.default_folder())
    return found


def inspect_disks(places: dict[str, str], *, speed: bool) -> tuple[Disk, ...]:
    """Look at the file systems of some folders; nothing is left there.

    Args:
        places: use -> folder, which need not be there yet.
        speed: write and read a file on each.
    """
    on: dict[int, tuple[str, list[str]]] = {}
    for use, folder in places.items():
        standing = nearest_existing_parent(folder)
        on.setdefault(os.stat(standing).st_dev, (standing, []))[1].append(use)
    return tuple(_disk(folder, tuple(uses), speed) for folder, uses in on.values())


def nearest_existing_parent(folder: str) -> str:
    """The folder, or the nearest one around it that is there.

    Raises:
        NotADirectoryError: a file stands there, or in the way.
    """
    path = Path(folder).absolute()
    nearest = next(each for each in (path, *path.parents) if each.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "a file stands in its place", str(nearest))
    return str(nearest)


def _disk(folder: str, uses: tuple[str, ...], speed: bool) -> Disk:
    usage = shutil.disk_usage(folder)
    try:
        write, read = _measure_speed(folder) if speed else _probe(folder)
    except OSError as error:
        reason = error_reason(error)
        return Disk(path=folder, uses=uses, free_bytes=usage.free, total_bytes=usage.total, error=reason)
    return Disk(
        path=folder,
        uses=uses,
        free_bytes=usage.free,
        total_bytes=usage.total,
        write_bytes_per_s=write,
        read_bytes_per_s=read,
    )


def _probe(folder: str) -> tuple[None, None]:
    with tempfile.TemporaryFile(dir=folder):  # has no name, so that nothing stays even if this process is killed
        return None, None


def _measure_speed(folder: str) -> tuple[float, float]:
    """Bytes per second that are written through to the disk, and that are read from it."""
    piece = os.urandom(_PIECE_BYTES)  # a disk may compress
    with tempfile.TemporaryFile(dir=folder) as file:
        began, size = time.perf_counter(), 0
        while size < _MAX_BYTES and time.perf_counter() - began < _TIME_LIMIT_S:
            file.write(piece)
            file.flush()
            size += len(piece)
        os.fsync(file.fileno())
        written_s = time.perf_counter() - began
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # or it would come from memory
        file.seek(0)
        began = time.perf_counter()
        while file.read(_PIECE_BYTES) and time.perf_counter() - began < _TIME_LIMIT_S:
            pass
        read_s, read = time.perf_counter() - began, file.tell()
    return size / max(written_s, 1e-9), read / max(read_s, 1e-9)


def check_disks(disks: Iterable[Disk]) -> list[Finding]:
    """Whether a run has room there, and is not slowed down."""
    return [_check_disk(disk) for disk in disks]


def _check_disk(disk: Disk) -> Finding:
    where = f"{disk.path} ({', '.join(disk.uses)})"
    text = f"{where}: {format_size(disk.free_bytes)} of {format_size(disk.total_bytes)} free"
    if disk.write_bytes_per_s is not None and disk.read_bytes_per_s is not None:
        text += f", writes {format_size(disk.write_bytes_per_s)}/s, reads {format_size(disk.read_bytes_per_s)}/s"
    elsewhere = (
        "TMPDIR, PHARMCLF_STORAGE_SPOOL and PHARMCLF_STORAGE_CACHE, and --temp-dir of `ray start`, name other folders"
    )
    if disk.error and disk.free_bytes >= _MIN_BYTES:
        return fail(
            "disk", f"{text}; it cannot be written: {disk.error}", f"mend its rights, or go elsewhere: {elsewhere}"
        )
    if disk.free_bytes < _MIN_BYTES:
        return fail("disk", text, f"make room, {format_size(_MIN_BYTES)} are the least; {elsewhere}")
    used = 1 - disk.free_bytes / disk.total_bytes if disk.total_bytes else 0.0
    if RAY_USE in disk.uses and used >= _RAY_FULL_SHARE:
        return warn("disk", f"{text}; Ray spills nothing to a disk that is {used:.0%} full", f"make room; {elsewhere}")
    if disk.free_bytes < _SCARCE_BYTES:
        return warn("disk", text, f"make room; {elsewhere}")
    if disk.write_bytes_per_s is not None and disk.write_bytes_per_s < _SLOW_BYTES_PER_S:
        return warn("disk", text, f"checkpoints and kept activations are slow on it; {elsewhere}")
    return ok("disk", text)
