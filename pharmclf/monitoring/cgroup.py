"""What a container may use of its machine: the limits of its control group on processors and memory, both versions.

In a container the system tells of the whole machine, and a process dies at the limit of its group all the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

_UNLIMITED_BYTES = 1 << 60  # version 1 writes a number near 2**63 where there is no limit


class ControlGroup:
    """The tightest limits that stand over a process; where there are none, everything is None."""

    def __init__(self, root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> None:
        """Find them.

        Args:
            root: where the control groups are mounted.
            membership: file that says which ones the process is in.
        """
        self.num_cpus: float | None = None
        """CPUs' worth of time that it may use."""
        self._memory: tuple[Path, bool] | None = None  # folder; whether it is one of version 2
        self._cpu: tuple[Path, bool] | None = None
        lowest = float(_UNLIMITED_BYTES)
        for folder in _folders(root, membership, "memory"):
            for name, second in (("memory.max", True), ("memory.limit_in_bytes", False)):
                limit = _number(folder / name)
                if limit is not None and limit < lowest:
                    lowest, self._memory = limit, (folder, second)
        for folder in _folders(root, membership, "cpu"):
            for quota, second in ((_quota(folder), True), (_quota_v1(folder), False)):
                if quota is not None and (self.num_cpus is None or quota < self.num_cpus):
                    self.num_cpus, self._cpu = quota, (folder, second)

    def memory(self) -> tuple[int, int] | None:
        """Bytes in use and at most; what could be given back at once, of files that were read, is not in use."""
        if self._memory is None:
            return None
        folder, second = self._memory
        names = ("memory.max", "memory.current") if second else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        limit, used = (_number(folder / name) for name in names)
        if limit is None or used is None:
            return None
        cached = _value_of(folder / "memory.stat", "inactive_file" if second else "total_inactive_file") or 0.0
        return int(max(0.0, used - cached)), int(limit)

    def cpu_seconds(self) -> float | None:
        """Processor time that all processes of the limited group have used."""
        if self._cpu is None:
            return None
        folder, second = self._cpu
        if second:
            used = _value_of(folder / "cpu.stat", "usage_usec")
            return None if used is None else used / 1e6
        used = _number(folder / "cpuacct.usage")
        return None if used is None else used / 1e9


def _folders(root: Path, membership: Path, controller: str) -> Iterator[Path]:
    """The folders of the groups of a process, from its own up to the root, as far as they are seen here."""
    with contextlib.suppress(OSError):
        for line in membership.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            top = root / controller if controllers else root
            own = top / path.strip("/")
            yield from (folder for folder in (own, *own.parents) if folder == top or top in folder.parents)


def _number(file: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        return float(file.read_text(encoding="utf-8"))  # "max" is no number
    return None


def _value_of(file: Path, name: str) -> float | None:
    """The number behind a name."""
    with contextlib.suppress(OSError, ValueError):
        for line in file.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return float(value)
    return None


def _quota(folder: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        return float(quota) / float(period)
    return None


def _quota_v1(folder: Path) -> float | None:
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota / period if quota and period and quota > 0 else None
