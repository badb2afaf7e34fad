"""CPUs, memory, disks and network of this node through psutil, as rates since the last reading."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence

import psutil

from pharmclf.monitoring.cgroup import ControlGroup
from pharmclf.monitoring.cores import schedulable_cores
from pharmclf.monitoring.samples import HostReading

_SHARED_MEMORY = "/dev/shm"
_TREE_INTERVAL = 6  # readings between two searches for new processes, which read all processes of the machine
_VIRTUAL = ("lo", "veth", "docker", "br-", "virbr", "cni", "flannel", "cali", "cilium", "lxc", "tun", "tap", "wg")
_MAX_LINK_MBIT = 400_000  # virtual cards report more


class HostSampler:
    """Reads this node. What the system does not report is None."""

    def __init__(self, folders: Sequence[str] = (), group: ControlGroup | None = None) -> None:
        """Start to count, and to watch the disks of local folders; without a group, that of this container is read."""
        self._group = group or ControlGroup()
        self._folders = tuple(folders)
        self._cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self._num_cpus = min(float(schedulable_cores()), self._group.num_cpus or float("inf"))
        self._tree = _ProcessTree()
        self._totals: dict[str, float] = {}
        self._at = time.monotonic()
        self.read()

    def read(self) -> HostReading:
        """Current state, and rates since the last reading."""
        now = time.monotonic()
        seconds, self._at = now - self._at, now
        rates = {name: self._rate(name, total, seconds) for name, total in self._read_totals().items()}
        cpu_percent = _percent(rates.get("busy"), rates.get("cpu"))
        if rates.get("group") is not None:
            cpu_percent = _percent(rates["group"], self._num_cpus)
        memory_used, memory_total = _memory(self._group)
        disk_folder, disk_free, disk_total = self._fullest_disk()
        shm_used, shm_total = _shared_memory()
        return HostReading(
            num_cpus=self._num_cpus,
            cpu_percent=cpu_percent,
            tree_cpu_percent=_percent(rates.get("tree"), self._num_cpus),
            iowait_percent=_percent(rates.get("iowait"), rates.get("cpu")),
            load=_load(),
            memory_used_bytes=memory_used,
            memory_total_bytes=memory_total,
            disk_read_bytes_per_s=rates.get("disk_read"),
            disk_write_bytes_per_s=rates.get("disk_write"),
            disk_folder=disk_folder,
            disk_free_bytes=disk_free,
            disk_total_bytes=disk_total,
            network_in_bytes_per_s=rates.get("network_in"),
            network_out_bytes_per_s=rates.get("network_out"),
            network_link_bytes_per_s=_link_speed(),
            shm_used_bytes=shm_used,
            shm_total_bytes=shm_total,
        )

    def _rate(self, name: str, total: float, seconds: float) -> float | None:
        """Increase of a counter per second; None at the first reading, and where the counter was reset."""
        before, self._totals[name] = self._totals.get(name), total
        return (total - before) / seconds if before is not None and total >= before and seconds > 0 else None

    def _read_totals(self) -> dict[str, float]:
        """Counters that only rise: CPU seconds, and bytes of disks and network cards."""
        totals: dict[str, float] = {}
        sources: tuple[Callable[[], Mapping[str, float]], ...] = (
            self._cpu_totals, lambda: {"tree": self._tree.cpu_seconds()}, _disk_totals, _network_totals
        )  # fmt: skip
        for source in sources:
            with contextlib.suppress(Exception):  # the system does not report it
                totals |= source()
        if (used := self._group.cpu_seconds()) is not None:
            totals["group"] = used
        return totals

    def _cpu_totals(self) -> dict[str, float]:
        """Seconds of the CPUs that this process may use."""
        times = psutil.cpu_times(percpu=True)
        cpus = [times[cpu] for cpu in self._cpus if cpu < len(times)] or times
        idle, iowait = (sum(getattr(cpu, name, 0.0) for cpu in cpus) for name in ("idle", "iowait"))
        # a guest's time is in user's as well
        total = sum(sum(cpu) - getattr(cpu, "guest", 0.0) - getattr(cpu, "guest_nice", 0.0) for cpu in cpus)
        return {"cpu": total, "busy": total - idle - iowait, "iowait": iowait}

    def _fullest_disk(self) -> tuple[str | None, int | None, int | None]:
        """The watched folder whose disk is the fullest, bytes free on it, and in all."""
        disks = []
        for folder in self._folders:
            with contextlib.suppress(OSError):
                usage = shutil.disk_usage(folder)
                total = usage.free + usage.used  # without what only the administrator may fill
                disks.append((usage.free / max(1, total), folder, usage.free, total))
        return min(disks)[1:] if disks else (None, None, None)


def _percent(part: float | None, whole: float | None) -> float | None:
    # Linux lets the iowait counter go back a little
    return None if part is None or not whole else min(100.0, max(0.0, 100.0 * part / whole))


def _load() -> float | None:
    with contextlib.suppress(OSError):
        return os.getloadavg()[0]
    return None


def _memory(group: ControlGroup) -> tuple[int | None, int | None]:
    """Bytes in use and in all, of the machine or of the container, whichever is fuller."""
    with contextlib.suppress(Exception):
        memory = psutil.virtual_memory()
        used, total = memory.total - memory.available, memory.total
        limited = group.memory()
        return limited if limited and limited[0] / max(1, limited[1]) > used / total else (used, total)
    return None, None


def _shared_memory() -> tuple[int | None, int | None]:
    with contextlib.suppress(OSError):  # other systems than Linux have none
        usage = shutil.disk_usage(_SHARED_MEMORY)
        return usage.used, usage.total
    return None, None


def _disk_totals() -> dict[str, float]:
    disk = psutil.disk_io_counters()
    return {"disk_read": disk.read_bytes, "disk_write": disk.write_bytes} if disk else {}


def _network_totals() -> dict[str, float]:
    cards = [card for name, card in psutil.net_io_counters(pernic=True).items() if _is_physical(name)]
    received, sent = sum(card.bytes_recv for card in cards), sum(card.bytes_sent for card in cards)
    return {"network_in": received, "network_out": sent}


def _link_speed() -> float | None:
    """Bytes per second of the fastest network card."""
    with contextlib.suppress(Exception):
        speeds = [card.speed for name, card in psutil.net_if_stats().items() if _is_physical(name) and card.isup]
        fastest = max((speed for speed in speeds if 0 < speed <= _MAX_LINK_MBIT and speed != 65535), default=0)
        return fastest * 1e6 / 8 or None
    return None


def _is_physical(card: str) -> bool:
    """Whether a network card's traffic is not also counted by another card."""
    return not card.startswith(_VIRTUAL)


class _ProcessTree:
    """CPU time of Ray's processes on this node; without a raylet above this process, of it and those below it."""

    def __init__(self) -> None:
        this = psutil.Process()
        with contextlib.suppress(psutil.Error):
            this = next((parent for parent in this.parents() if parent.name() == "raylet"), this)
        self._root = this
        self._used_s: dict[psutil.Process, float] = {}
        self._total_s, self._num_readings = 0.0, 0

    def cpu_seconds(self) -> float:
        """Total since the first call; it only rises, also where processes start and end."""
        is_first = not self._used_s
        if self._num_readings % _TREE_INTERVAL == 0:
            with contextlib.suppress(psutil.Error):
                for process in (self._root, *self._root.children(recursive=True)):
                    self._used_s.setdefault(process, 0.0)
        self._num_readings += 1
        for process, before in list(self._used_s.items()):
            try:
                times = process.cpu_times()
            except psutil.Error:
                del self._used_s[process]
                continue
            used = times.user + times.system
            # a new process has used all of its time since the last search
            self._total_s += 0.0 if is_first else max(0.0, used - before)
            self._used_s[process] = used
        return self._total_s
