"""The quantities of a node's hardware over time, as panels of curves; draws nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pharmclf.monitoring.samples import GpuReading, NodeSample, percent
from pharmclf.monitoring.thresholds import THRESHOLDS

Curve = Sequence[float | None]
"""A value for each row; None where it is unknown."""


@dataclass(frozen=True, kw_only=True)
class TimePanel:
    """The curves of one quantity."""

    title: str
    curves: Mapping[str, Curve]
    """By name; "" has no legend."""
    unit: str = "%"
    top: float | None = None
    """Of the axis; None: as the values need."""
    rules: Sequence[str] = ()
    """Keys of `THRESHOLDS` whose warnings are shown here."""
    limits: Sequence[float] = ()
    """Thresholds of warnings."""
    per_gpu: bool = False

    @property
    def heading(self) -> str:
        """Title and unit."""
        return f"{self.title}, {self.unit}"


def build_panels(rows: Sequence[NodeSample]) -> list[TimePanel]:
    """The quantities of a node, those of its GPUs and of its host in turn."""
    host, gpus = _host_panels(rows), _gpu_panels(rows)
    return list(itertools.chain.from_iterable(zip(gpus, host, strict=False))) if gpus else host


def _host_panels(rows: Sequence[NodeSample]) -> list[TimePanel]:
    hosts = [row.host for row in rows]
    processors = {
        "all processes": [host.cpu_percent for host in hosts],
        "this run": [host.tree_cpu_percent for host in hosts],
    }
    used = {
        "memory": [percent(host.memory_used_bytes, host.memory_total_bytes) for host in hosts],
        "/dev/shm": [percent(host.shm_used_bytes, host.shm_total_bytes) for host in hosts],
        "disk": [_used_percent(host.disk_free_bytes, host.disk_total_bytes) for host in hosts],
    }
    network = {
        "in": [_mega(host.network_in_bytes_per_s) for host in hosts],
        "out": [_mega(host.network_out_bytes_per_s) for host in hosts],
    }
    disk = {
        "read": [_mega(host.disk_read_bytes_per_s) for host in hosts],
        "written": [_mega(host.disk_write_bytes_per_s) for host in hosts],
    }
    panels = [
        TimePanel(title="Processors", curves=processors, top=100.0),
        TimePanel(title="Memory and disk in use", curves=used, top=100.0, rules=("memory", "disk")),
        TimePanel(title="Network", curves=network, unit="MB/s"),
        TimePanel(title="Disk", curves=disk, unit="MB/s"),
    ]
    if any(row.loop for row in rows):
        waited = {"": [None if row.loop is None else 100.0 * row.loop.wait_share for row in rows]}
        limits, title = [THRESHOLDS["waiting"].warning or 0.0], "Time that the device waited for data"
        panels.insert(0, TimePanel(title=title, curves=waited, top=100.0, rules=("waiting",), limits=limits))
    return panels


def _gpu_panels(rows: Sequence[NodeSample]) -> list[TimePanel]:
    by_row = [{gpu.index: gpu for gpu in row.gpus} for row in rows]
    indices = sorted({index for gpus in by_row for index in gpus})
    if not indices:
        return []

    def panel(title: str, value: Callable[[GpuReading], float | None], **options: Any) -> TimePanel:
        curves = {
            f"GPU {index}": [value(gpus[index]) if index in gpus else None for gpus in by_row] for index in indices
        }
        return TimePanel(title=title, curves=curves, per_gpu=True, **options)

    heat, memory = THRESHOLDS["temperature"], THRESHOLDS["gpu memory"]
    bounds = [limit for limit in (heat.warning, heat.alarm) if limit is not None]
    powers = sorted({gpu.power_limit_w for row in rows for gpu in row.gpus if gpu.power_limit_w is not None})
    return [
        panel("GPU utilisation", lambda gpu: gpu.utilisation_percent, top=100.0, rules=("gpu unused", "gpu lost")),
        panel("GPU temperature", lambda gpu: gpu.temperature_c, unit="°C", rules=("temperature",), limits=bounds),
        panel(
            "GPU memory in use",
            lambda gpu: gpu.memory_percent,
            top=100.0,
            rules=("gpu memory", "gpu errors"),
            limits=[memory.alarm or 100.0],
        ),
        panel("GPU power", lambda gpu: gpu.power_w, unit="W", limits=powers if len(powers) == 1 else ()),
        panel("GPU clock", lambda gpu: gpu.sm_clock_mhz, unit="MHz", rules=("throttling",)),
    ]


def _used_percent(free: float | None, total: float | None) -> float | None:
    return 100.0 * (1.0 - free / total) if free is not None and total else None


def _mega(value: float | None) -> float | None:
    return None if value is None else value / 1e6
