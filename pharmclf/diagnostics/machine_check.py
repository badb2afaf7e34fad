"""Processors, memory and shared memory of a node: what the machine has, what its container may use, what Ray counts."""

from __future__ import annotations

import os
import shutil
import socket
from dataclasses import dataclass

import psutil

from pharmclf.core.units import format_memory
from pharmclf.diagnostics.results import Finding, fail, ok, warn
from pharmclf.monitoring.cgroup import ControlGroup
from pharmclf.monitoring.cores import schedulable_cores

_SHARED = "/dev/shm"
# Ray that is started without settings takes this share of the memory for its object store, and above so many bytes no
# more than a share of /dev/shm
_STORE_SHARE, _STORE_BYTES, _OF_SHARED = 0.3, 10**10, 0.95
_MIN_BYTES = 1 << 30  # assumed: a process with TensorFlow and a small network, and Ray beside it
_SCARCE_BYTES = 4 << 30
_SLACK = 1.02  # Ray and the kernel round differently


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A node as its own processes see it."""

    host: str
    cores: int
    """That this process may run on."""
    quota_cpus: float | None
    """Processor time that the container may use, in cores; None: no bound."""
    memory_bytes: int
    limit_bytes: int | None
    """Memory that the container may use; None: no bound."""
    available_bytes: int
    """Memory that is free, or can be freed at once, within the bound."""
    shared_bytes: int
    """Size of /dev/shm; 0 where there is none."""

    @property
    def usable_cpus(self) -> float:
        """Cores that work can be done on at a time."""
        return min(self.cores, self.quota_cpus or self.cores)

    @property
    def usable_bytes(self) -> int:
        """Memory that work can take."""
        return min(self.memory_bytes, self.limit_bytes or self.memory_bytes)


@dataclass(frozen=True, kw_only=True)
class RayNodeInfo:
    """What Ray takes a node for."""

    cpus: float
    gpus: float
    memory_bytes: float
    """For tasks and actors."""
    store_bytes: float
    """For the object store."""


def inspect_machine() -> Machine:
    """Look at the machine of this process."""
    group, memory = ControlGroup(), psutil.virtual_memory()
    used, limit = group.memory() or (0, memory.total)
    return Machine(
        host=socket.gethostname(),
        cores=schedulable_cores(),
        quota_cpus=group.num_cpus,
        memory_bytes=memory.total,
        limit_bytes=limit if limit < memory.total else None,
        available_bytes=min(memory.available, max(0, limit - used)),
        shared_bytes=shutil.disk_usage(_SHARED).total if os.path.isdir(_SHARED) else 0,
    )


def check_cpus(machine: Machine, ray: RayNodeInfo | None) -> Finding:
    """Whether Ray gives work to as many cores as there are."""
    has = f"{machine.cores} cores"
    if machine.quota_cpus is not None and machine.quota_cpus < machine.cores:
        has += f", of which the container may use {machine.quota_cpus:g}"
    if ray is None:
        return ok("processors", has)
    text = f"{has}; Ray counts {ray.cpus:g}"
    if ray.cpus > max(1.0, _SLACK * machine.usable_cpus):
        remedy = f"start its Ray with --num-cpus={max(1, int(machine.usable_cpus))}: work on the others slows all down"
        return warn("processors", text, remedy)
    return ok("processors", text)


def check_memory(machine: Machine, ray: RayNodeInfo | None) -> Finding:
    """Whether there is room for training, and Ray knows of the bound."""
    text = f"{format_memory(machine.usable_bytes)}, {format_memory(machine.available_bytes)} of it free"
    if machine.limit_bytes is not None:
        text += f" (the machine has {format_memory(machine.memory_bytes)}, the container is bound)"
    if machine.available_bytes < _MIN_BYTES:
        remedy = f"end other programs, or take a larger machine: {format_memory(_MIN_BYTES)} are the least"
        return fail("memory", text, remedy)
    if ray is not None and ray.memory_bytes + ray.store_bytes > _SLACK * machine.usable_bytes:
        text += f"; Ray counts {format_memory(int(ray.memory_bytes + ray.store_bytes))}"
        remedy = "start its Ray with --memory and --object-store-memory that fit, or the kernel kills its processes"
        return warn("memory", text, remedy)
    if machine.available_bytes < _SCARCE_BYTES:
        return warn("memory", text, "end other programs, or give a smaller --batch-size if the run is killed")
    return ok("memory", text)


def check_shared_memory(machine: Machine, ray: RayNodeInfo | None) -> Finding:
    """Whether Ray's object store, through which all images pass, lies in memory."""
    most = max(_STORE_BYTES, _OF_SHARED * machine.shared_bytes)
    wanted = ray.store_bytes if ray is not None else min(_STORE_SHARE * machine.usable_bytes, most)
    text = f"{_SHARED} has {format_memory(machine.shared_bytes)}, Ray's object store {format_memory(int(wanted))}"
    if machine.shared_bytes * _SLACK < wanted:
        remedy = (
            f"give the container --shm-size={_gigabytes(wanted)}g, on Kubernetes an emptyDir of medium Memory at "
            f"{_SHARED}: the object store lies on disk otherwise, which is slow"
        )
        return warn("shm", text, remedy)
    return ok("shm", text)


def _gigabytes(size: float) -> int:
    return max(1, -(-int(size) // (1 << 30)))
