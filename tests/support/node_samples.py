"""Rows of nodes as tests need them: from the traces, and made up."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pharmclf.monitoring.samples import GpuReading, HostReading, LoopReading, NodeSample
from support.fake_nvml import FakeNvml

TRACES = Path(__file__).parents[1] / "monitoring" / "traces"
STEP_S = 5.0
BEGAN_S = 1_795_000_000.0
GIB = 1 << 30
HOST = HostReading(
    num_cpus=16.0,
    cpu_percent=40.0,
    tree_cpu_percent=38.0,
    iowait_percent=0.5,
    load=7.0,
    memory_used_bytes=20 * GIB,
    memory_total_bytes=64 * GIB,
    disk_read_bytes_per_s=1e6,
    disk_write_bytes_per_s=2e6,
    disk_folder="/tmp",
    disk_free_bytes=400 * GIB,
    disk_total_bytes=1000 * GIB,
    network_in_bytes_per_s=30e6,
    network_out_bytes_per_s=1e6,
    network_link_bytes_per_s=1.25e9,
    shm_used_bytes=2 * GIB,
    shm_total_bytes=32 * GIB,
)
"""A node at ease."""


def trace(name: str) -> FakeNvml:
    """A trace by its name."""
    return FakeNvml((TRACES / f"{name}.csv").read_text(encoding="utf-8"))


def row(place: int = 0, node: str = "10.0.0.1", **values: Any) -> NodeSample:
    """A row, the place-th of its node; `host` fields may be given as `host_…`."""
    host = {name.removeprefix("host_"): values.pop(name) for name in list(values) if name.startswith("host_")}
    made = {"seconds": STEP_S, "host": dataclasses.replace(HOST, **host)} | values
    return NodeSample(at_s=BEGAN_S + (place + 1) * made["seconds"], node=node, **made)


def loop(wait_share: float = 0.02, seconds: float = STEP_S, **values: Any) -> LoopReading:
    """Of a worker that takes steps."""
    return LoopReading(seconds=seconds, wait_share=wait_share, **{"steps": 20, "cpu_percent": 60.0} | values)


def gpu(index: int = 0, **values: Any) -> GpuReading:
    """A GPU at work."""
    made: dict[str, Any] = {
        "name": "NVIDIA L4",
        "utilisation_percent": 95.0,
        "memory_used_bytes": 10 * GIB,
        "memory_total_bytes": 24 * GIB,
        "temperature_c": 60.0,
        "power_w": 70.0,
        "power_limit_w": 72.0,
        "sm_clock_mhz": 1700.0,
        "memory_clock_mhz": 6251.0,
        "throttle": {"power cap": 1.0},
        "ecc_errors": 0,
    }
    return GpuReading(index=index, **made | values)


def played(name: str, **values: Any) -> list[NodeSample]:
    """The rows of a node with the GPUs of a trace."""
    nvml = trace(name)
    return [
        row(place, gpus=tuple(nvml.read(index) for index in range(nvml.num_gpus)), **values)
        for place in range(nvml.num_readings)
    ]


def steady(count: int, gpus: Sequence[GpuReading] = (), **values: Any) -> list[NodeSample]:
    """The same again and again."""
    return [row(place, gpus=tuple(gpus), **values) for place in range(count)]
