"""Processors, memory, disks and network of this node through psutil, as what has changed since the last reading."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import psutil

from pharmclf.monitoring.cgroup import ControlGroup
from pharmclf.monitoring.samples import HostReading

_SHARED_MEMORY = "/dev/shm"
_TREE_INTERVAL = 6  # readings: the processes below this one are looked for so seldom, since all of the machine are read
_VIRTUAL = ("lo", "veth", "docker", "br-", "virbr", "cni", "flannel", "cali", "cilium", "lxc", "tun", "tap", "wg")
_LINKS_MBIT = 400_000  # more than this is what virtual cards say of themselves


class HostSampler:
    """Reads this node. Of what the system does not tell, or not to us, nothing is said."""

    def __init__(self, folders: Sequence[str] = (), group: ControlGroup | None = None) -> None:
        """Begin to count.

        Args:
            folders: local ones, whose disks are watched.
            group: the limits of this container; found out if not given.
        """
        self._group = group or ControlGroup()
        self._folders = tuple(folders)
        self._allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self._num_cpus = min(float(len(self._allowed) or psutil.cpu_count() or 1), self._group.num_cpus or float("inf"))
        self._tree = _Tree()
        self._last: dict[str, float] = {}
        self._at = time.monotonic()
        self.read()

    def read(self) -> HostReading:
        """What has happened since the last reading, and what is there now."""
        now = time.monotonic()
        seconds, self._at = now - self._at, now
        since = {name: self._since(name, total, seconds) for name, total in self._counters()}
        found: dict[str, Any] = {"num_cpus": self._num_cpus}
        for part in (self._processors(since), _memory(self._group), self._disks(), _links(), _shared_memory()):
            found |= part
        for name in ("disk_read", "disk_write", "network_in", "network_out"):
            found[f"{name}_bytes_per_s"] = since.get(name)
        return HostReading(**found)

    def _since(self, name: str, total: float, seconds: float) -> float | None:
        """How fast a counter has risen, per second; None at the first time, and where it was set back."""
        before, self._last[name] = self._last.get(name), total
        return (total - before) / seconds if before is not None and total >= before and seconds > 0 else None

    def _counters(self) -> Iterator[tuple[str, float]]:
        """What only ever rises."""
        with contextlib.suppress(Exception):
            times = psutil.cpu_times(percpu=True)
            mine = [times[cpu] for cpu in self._allowed if cpu < len(times)] or times
            idle, waits = (sum(getattr(cpu, name, 0.0) for cpu in mine) for name in ("idle", "iowait"))
            # a guest's time is in user's as well
            total = sum(sum(cpu) - getattr(cpu, "guest", 0.0) - getattr(cpu, "guest_nice", 0.0) for cpu in mine)
            yield from (("all", total), ("busy", total - idle - waits), ("iowait", waits))
        if (used := self._group.cpu_seconds()) is not None:
            yield "group", used
        with contextlib.suppress(Exception):
            yield "tree", self._tree.cpu_seconds()
        with contextlib.suppress(Exception):
            if disk := psutil.disk_io_counters():
                yield from (("disk_read", disk.read_bytes), ("disk_write", disk.write_bytes))
        with contextlib.suppress(Exception):
            cards = {name: card for name, card in psutil.net_io_counters(pernic=True).items() if _is_physical(name)}
            yield "network_in", sum(card.bytes_recv for card in cards.values())
            yield "network_out", sum(card.bytes_sent for card in cards.values())

    def _processors(self, since: dict[str, float | None]) -> dict[str, float | None]:
        """Shares of the CPUs that this process may use."""
        whole, busy, waits = (since.get(name) for name in ("all", "busy", "iowait"))
        group, tree = since.get("group"), since.get("tree")
        percent = {
            "cpu_percent": 100 * busy / whole if whole and busy is not None else None,
            "iowait_percent": 100 * waits / whole if whole and waits is not None else None,
            "tree_cpu_percent": None if tree is None else 100 * tree / self._num_cpus,
        }
        if group is not None:
            percent["cpu_percent"] = 100 * group / self._num_cpus
        load = None
        with contextlib.suppress(OSError):
            load = os.getloadavg()[0]
        # Linux lets the time that it waited for disks go back a little
        bounded = {name: None if value is None else min(100.0, max(0.0, value)) for name, value in percent.items()}
        return bounded | {"load": load}

    def _disks(self) -> dict[str, Any]:
        """The watched folder whose disk is the fullest."""
        found = []
        for folder in self._folders:
            with contextlib.suppress(OSError):
                usage = shutil.disk_usage(folder)
                found.append((usage.free / max(1, usage.free + usage.used), folder, usage))
        if not found:
            return {}
        _, folder, usage = min(found, key=lambda item: item[0])
        # what only the administrator may fill is not there for us
        return {"disk_folder": folder, "disk_free_bytes": usage.free, "disk_total_bytes": usage.free + usage.used}


def _memory(group: ControlGroup) -> dict[str, int]:
    with contextlib.suppress(Exception):
        memory = psutil.virtual_memory()
        used, total = memory.total - memory.available, memory.total
        limited = group.memory()
        # what is nearest to its end decides
        if limited and limited[0] / max(1, limited[1]) > used / total:
            used, total = limited
        return {"memory_used_bytes": used, "memory_total_bytes": total}
    return {}


def _shared_memory() -> dict[str, int]:
    if not sys.platform.startswith("linux"):
        return {}
    with contextlib.suppress(OSError):
        usage = shutil.disk_usage(_SHARED_MEMORY)
        return {"shm_used_bytes": usage.used, "shm_total_bytes": usage.total}
    return {}


def _links() -> dict[str, float]:
    with contextlib.suppress(Exception):
        cards = psutil.net_if_stats()
        speeds = [card.speed for name, card in cards.items() if _is_physical(name) and card.isup]
        if fastest := max((speed for speed in speeds if 0 < speed <= _LINKS_MBIT and speed != 65535), default=0):
            return {"network_link_bytes_per_s": fastest * 1e6 / 8}
    return {}


def _is_physical(card: str) -> bool:
    """Whether traffic of a network card is not that of another card once more."""
    return not card.startswith(_VIRTUAL)


class _Tree:
    """Processor time of Ray's processes on this node; without Ray above us, of this process and those below it."""

    def __init__(self) -> None:
        own = psutil.Process()
        with contextlib.suppress(psutil.Error):
            own = next((parent for parent in own.parents() if parent.name() == "raylet"), own)
        self._root = own
        self._known: dict[psutil.Process, float] = {}
        self._total, self._count = 0.0, 0

    def cpu_seconds(self) -> float:
        """Of all of them since the first call; a counter that only rises, also where processes come and go."""
        first = not self._known
        if self._count % _TREE_INTERVAL == 0:
            with contextlib.suppress(psutil.Error):
                for process in (self._root, *self._root.children(recursive=True)):
                    self._known.setdefault(process, -1.0)
        self._count += 1
        for process, before in list(self._known.items()):
            try:
                times = process.cpu_times()
            except psutil.Error:
                del self._known[process]
                continue
            used = times.user + times.system
            # a process that is new has used all of it since it was looked for last
            self._total += 0.0 if first else max(0.0, used - max(0.0, before))
            self._known[process] = used
        return self._total
