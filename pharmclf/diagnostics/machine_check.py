"""Checks of a machine: processors, memory and shared memory, with the limits of its container, and local disks."""

from __future__ import annotations

import errno
import math
import os
import shutil
import socket
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import psutil

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.core.errors import error_reason
from pharmclf.core.units import format_memory, format_size
from pharmclf.diagnostics.results import Finding, fail, ok, warn
from pharmclf.feature_cache import local_cache
from pharmclf.monitoring.cgroup import ControlGroup
from pharmclf.monitoring.cores import schedulable_cores
from pharmclf.training.checkpoint_manager import staging_dir

_SHM = "/dev/shm"
# Ray's default object store: this share of the memory; above so many bytes, at most a share of /dev/shm
_STORE_SHARE, _STORE_BYTES, _STORE_SHM_SHARE = 0.3, 10**10, 0.95
_MIN_MEMORY_BYTES, _SCARCE_MEMORY_BYTES = 1 << 30, 4 << 30  # assumed: TensorFlow with a small network, and Ray
_SLACK = 1.02  # Ray and the kernel round differently
RAY_USE = "Ray"
_BLOCK_BYTES, _MAX_BYTES = 1 << 20, 64 << 20  # of the timed file
_TIME_LIMIT_S = 2.0
_MIN_BYTES, _SCARCE_BYTES = 100 << 20, 2 << 30
_RAY_FULL_SHARE = 0.95  # a fuller disk gets no objects that do not fit Ray's object store
_SLOW_BYTES_PER_S = 20e6
_ELSEWHERE = (
    "TMPDIR, PHARMCLF_STORAGE_SPOOL and PHARMCLF_STORAGE_CACHE, and --temp-dir of `ray start`, name other folders"
)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A node as its processes see it."""

    host: str
    cores: int
    """Cores that this process may run on."""
    quota_cpus: float | None
    """Processor time of the container, in cores; None: no limit."""
    memory_bytes: int
    limit_bytes: int | None
    """Memory of the container; None: no limit."""
    available_bytes: int
    """Memory that is free or can be freed at once, within the limit."""
    shared_bytes: int
    """Size of /dev/shm; 0 where it is missing."""

    @property
    def usable_cpus(self) -> float:
        """Cores that can be busy at a time."""
        return min(self.cores, self.quota_cpus or self.cores)

    @property
    def usable_bytes(self) -> int:
        """Memory that processes can use."""
        return min(self.memory_bytes, self.limit_bytes or self.memory_bytes)


@dataclass(frozen=True, kw_only=True)
class RayNodeInfo:
    """The resources that Ray counts on a node."""

    cpus: float
    gpus: float
    memory_bytes: float
    """For tasks and actors."""
    store_bytes: float
    """For the object store."""


def inspect_machine() -> Machine:
    """Inspect the machine of this process."""
    group, memory = ControlGroup(), psutil.virtual_memory()
    used, limit = group.memory() or (0, memory.total)
    return Machine(
        host=socket.gethostname(),
        cores=schedulable_cores(),
        quota_cpus=group.num_cpus,
        memory_bytes=memory.total,
        limit_bytes=limit if limit < memory.total else None,
        available_bytes=min(memory.available, max(0, limit - used)),
        shared_bytes=shutil.disk_usage(_SHM).total if os.path.isdir(_SHM) else 0,
    )


def check_cpus(machine: Machine, ray: RayNodeInfo | None) -> Finding:
    """Whether Ray counts no more cores than can be used; `ray` is None before Ray starts. Pure."""
    text = f"{machine.cores} cores"
    if machine.quota_cpus is not None and machine.quota_cpus < machine.cores:
        text += f", of which the container may use {machine.quota_cpus:g}"
    if ray is None:
        return ok("processors", text)
    text += f"; Ray counts {ray.cpus:g}"
    if ray.cpus > max(1.0, _SLACK * machine.usable_cpus):
        remedy = f"start its Ray with --num-cpus={max(1, int(machine.usable_cpus))}: else its tasks slow each other"
        return warn("processors", text, remedy)
    return ok("processors", text)


def check_memory(machine: Machine, ray: RayNodeInfo | None) -> Finding:
    """Whether there is memory for training, and Ray counts no more than there is; pure."""
    text = f"{format_memory(machine.usable_bytes)}, {format_memory(machine.available_bytes)} of it free"
    if machine.limit_bytes is not None:
        text += f" (limit of the container; the machine has {format_memory(machine.memory_bytes)})"
    if machine.available_bytes < _MIN_MEMORY_BYTES:
        remedy = f"end other programs, or use a larger machine: at least {format_memory(_MIN_MEMORY_BYTES)} are needed"
        return fail("memory", text, remedy)
    if ray is not None and ray.memory_bytes + ray.store_bytes > _SLACK * machine.usable_bytes:
        text += f"; Ray counts {format_memory(ray.memory_bytes + ray.store_bytes)}"
        remedy = "start its Ray with --memory and --object-store-memory that fit, or the kernel kills its processes"
        return warn("memory", text, remedy)
    if machine.available_bytes < _SCARCE_MEMORY_BYTES:
        return warn("memory", text, "end other programs, or give a smaller --batch-size if the run is killed")
    return ok("memory", text)


def check_shared_memory(machine: Machine, ray: RayNodeInfo | None) -> Finding:
    """Whether Ray's object store, which holds all decoded images, fits into /dev/shm; pure."""
    limit = max(_STORE_BYTES, _STORE_SHM_SHARE * machine.shared_bytes)
    store = ray.store_bytes if ray is not None else min(_STORE_SHARE * machine.usable_bytes, limit)
    text = f"{_SHM} has {format_memory(machine.shared_bytes)}, Ray's object store {format_memory(store)}"
    if machine.shared_bytes * _SLACK >= store:
        return ok("shm", text)
    remedy = (
        f"give the container --shm-size={max(1, math.ceil(store / (1 << 30)))}g, on Kubernetes an emptyDir of medium "
        f"Memory at {_SHM}: otherwise the object store is on a disk, which is slow"
    )
    return warn("shm", text, remedy)


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
    """What a run writes to the local disks of a node -> the folder.

    Args:
        ray_folder: folder of this node's Ray; "": the default of a Ray that starts now.
    """
    folders = {"temporary files": tempfile.gettempdir()}
    folders[RAY_USE] = ray_folder or os.path.join(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "ray")
    if storage.is_remote(config.storage):
        folders["checkpoints before their upload"] = str(Path(staging_dir("")).parent)
        if config.feature_cache != "never":
            folders["copies of the feature cache"] = str(local_cache.default_folder())
    return folders


def inspect_disks(folders: dict[str, str], *, speed: bool) -> tuple[Disk, ...]:
    """Inspect the file systems of folders, by use, that may be missing; `speed` writes, reads and removes a file."""
    by_device: dict[int, tuple[str, list[str]]] = {}
    for use, folder in folders.items():
        existing = nearest_existing_parent(folder)
        by_device.setdefault(os.stat(existing).st_dev, (existing, []))[1].append(use)
    return tuple(_inspect_disk(folder, tuple(uses), speed) for folder, uses in by_device.values())


def nearest_existing_parent(folder: str) -> str:
    """The folder, or the nearest one around it that exists.

    Raises:
        NotADirectoryError: that is a file.
    """
    nearest = storage.nearest_existing(folder)
    if not nearest.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "a file is in its place", str(nearest))
    return str(nearest)


def _inspect_disk(folder: str, uses: tuple[str, ...], speed: bool) -> Disk:
    usage = shutil.disk_usage(folder)
    disk = Disk(path=folder, uses=uses, free_bytes=usage.free, total_bytes=usage.total)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:  # it has no name, so it is gone even if this process is killed
            if not speed:
                return disk
            write, read = _measure_speed(file)
    except OSError as error:
        return replace(disk, error=error_reason(error))
    return replace(disk, write_bytes_per_s=write, read_bytes_per_s=read)


def _measure_speed(file: BinaryIO) -> tuple[float, float]:
    """Bytes per second that are written through to the disk, and that are read from it."""
    block = os.urandom(_BLOCK_BYTES)  # a disk may compress
    began, size = time.perf_counter(), 0
    while size < _MAX_BYTES and time.perf_counter() - began < _TIME_LIMIT_S:
        file.write(block)
        file.flush()
        size += len(block)
    os.fsync(file.fileno())
    write_s = time.perf_counter() - began
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # else the file is read from memory
    file.seek(0)
    began = time.perf_counter()
    while file.read(_BLOCK_BYTES) and time.perf_counter() - began < _TIME_LIMIT_S:
        pass
    return size / max(write_s, 1e-9), file.tell() / max(time.perf_counter() - began, 1e-9)


def check_disk(disk: Disk) -> Finding:
    """Whether a run has room there, and is not slowed down; pure."""
    text = (
        f"{disk.path} ({', '.join(disk.uses)}): {format_size(disk.free_bytes)} of {format_size(disk.total_bytes)} free"
    )
    if disk.write_bytes_per_s is not None and disk.read_bytes_per_s is not None:
        text += f", writes {format_size(disk.write_bytes_per_s)}/s, reads {format_size(disk.read_bytes_per_s)}/s"
    if disk.free_bytes < _MIN_BYTES:
        return fail("disk", text, f"make room, at least {format_size(_MIN_BYTES)}; {_ELSEWHERE}")
    if disk.error:
        return fail("disk", f"{text}; it cannot be written: {disk.error}", f"correct its rights; {_ELSEWHERE}")
    used = 1 - disk.free_bytes / disk.total_bytes if disk.total_bytes else 0.0
    if RAY_USE in disk.uses and used >= _RAY_FULL_SHARE:
        return warn("disk", f"{text}; Ray spills nothing to a disk that is {used:.0%} full", f"make room; {_ELSEWHERE}")
    if disk.free_bytes < _SCARCE_BYTES:
        return warn("disk", text, f"make room; {_ELSEWHERE}")
    if disk.write_bytes_per_s is not None and disk.write_bytes_per_s < _SLOW_BYTES_PER_S:
        return warn("disk", text, f"checkpoints and the feature cache are slow on it; {_ELSEWHERE}")
    return ok("disk", text)
