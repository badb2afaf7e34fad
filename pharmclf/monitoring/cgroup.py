"""Limits of a container on CPUs and memory, from its control groups of version 1 or 2.

In a container the system reports the whole machine, but a process is killed at the memory limit of its group.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

_UNLIMITED_BYTES = 1 << 60  # version 1 writes a number near 2**63 where there is no limit


_MEMORY_V2 = ("memory.max", "memory.current", "inactive_file")
_MEMORY_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
"""Files of the limit and of the bytes in use; key in memory.stat of file pages that the kernel can free at once."""


class ControlGroup:
    """The tightest limits on a process; where there are none, everything is None."""

    def __init__(self, root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> None:
        """Find the limits; the file `membership` lists the groups of the process."""
        self.num_cpus: float | None = None
        """CPUs' worth of time that it may use."""
        self._cpu_folder = root
        self._memory: tuple[Path, tuple[str, str, str]] | None = None
        lowest = float(_UNLIMITED_BYTES)
        for folder in _group_folders(root, membership, "memory"):
            for files in (_MEMORY_V2, _MEMORY_V1):
                limit = _read_number(folder / files[0])
                if limit is not None and limit < lowest:
                    lowest, self._memory = limit, (folder, files)
        for folder in _group_folders(root, membership, "cpu"):
            quota = _read_quota(folder)
            if quota is not None and (self.num_cpus is None or quota < self.num_cpus):
                self.num_cpus, self._cpu_folder = quota, folder

    def memory(self) -> tuple[int, int] | None:
        """Bytes in use and at most; cached files that the kernel can free at once are not in use."""
        if self._memory is None:
            return None
        folder, (limit_file, used_file, cached_key) = self._memory
        limit, used = _read_number(folder / limit_file), _read_number(folder / used_file)
        if limit is None or used is None:
            return None
        cached = _read_value(folder / "memory.stat", cached_key) or 0.0
        return int(max(0.0, used - cached)), int(limit)

    def cpu_seconds(self) -> float | None:
        """CPU time that all processes of the limited group have used."""
        if self.num_cpus is None:
            return None
        microseconds = _read_value(self._cpu_folder / "cpu.stat", "usage_usec")
        if microseconds is not None:
            return microseconds / 1e6
        nanoseconds = _read_number(self._cpu_folder / "cpuacct.usage")
        return None if nanoseconds is None else nanoseconds / 1e9


def _group_folders(root: Path, membership: Path, controller: str) -> Iterator[Path]:
    """Folders of the groups of a process, from the innermost up to the root, as far as they are visible here."""
    with contextlib.suppress(OSError):
        for line in membership.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            top = root / controller if controllers else root
            innermost = top / path.strip("/")
            yield from (folder for folder in (innermost, *innermost.parents) if folder.is_relative_to(top))


def _read_number(file: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        return float(file.read_text(encoding="utf-8"))  # "max" is no number
    return None


def _read_value(file: Path, key: str) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        for line in file.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return float(value)
    return None


def _read_quota(folder: Path) -> float | None:
    """CPUs that a group may use."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        return float(quota) / float(period)
    quota_us, period_us = _read_number(folder / "cpu.cfs_quota_us"), _read_number(folder / "cpu.cfs_period_us")
    return quota_us / period_us if quota_us and period_us and quota_us > 0 else None
