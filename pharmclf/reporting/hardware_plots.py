"""The hardware of a run over time: a sheet for each node, and single panels for the report. In the look of `plots`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from matplotlib.figure import Figure

from pharmclf.core.units import format_count, format_duration, format_memory
from pharmclf.monitoring.alerts import HardwareAlert
from pharmclf.monitoring.samples import GpuReading, NodeSample
from pharmclf.monitoring.thresholds import THRESHOLDS
from pharmclf.reporting.hardware_axes import TimeCurve, Timeline, TimePanel, draw_panel, mark_handles
from pharmclf.reporting.hardware_text import gpus_text
from pharmclf.reporting.plots import DPI, SOFT, png_bytes, styled, write_heading

MAX_NODES = 2
"""Nodes whose panels are in a report: those with most warnings, then those with GPUs."""


def hardware_png(rows: Sequence[NodeSample], findings: Iterable[HardwareAlert] = ()) -> bytes:
    """All that was read of a node over time.

    Args:
        rows: of one node, the oldest first.
        findings: warnings of the run; those of other nodes are left out.

    Raises:
        ValueError: no rows, or rows of several nodes.
    """
    with styled():
        return png_bytes(_sheet(rows, findings))


def hardware_curves(rows: Iterable[NodeSample], findings: Iterable[HardwareAlert] = ()) -> list[tuple[str, bytes]]:
    """Single panels for the report, as (title, PNG): of those nodes that have most to tell.

    Args:
        rows: of a run; those of a node in the order of time.
        findings: warnings of the run.
    """
    findings = list(findings)
    by_node: dict[str, list[NodeSample]] = {}
    for row in rows:
        by_node.setdefault(row.node, []).append(row)
    warned = {node: sum(found.node == node for found in findings) for node in by_node}
    order = sorted(by_node, key=lambda node: (-warned[node], not by_node[node][-1].gpus, node))
    pictures = []
    for node in order[:MAX_NODES]:
        time = Timeline(by_node[node], [found for found in findings if found.node == node])
        for panel in _panels(time.rows):
            with styled():
                figure = Figure(figsize=(6.6, 2.5), dpi=DPI)
                draw_panel(figure.add_axes((0.075, 0.19, 0.9, 0.6)), panel, time, titled=False)
                where = f", {node}" if len(by_node) > 1 else ""
                pictures.append((f"{panel.heading}{where}", png_bytes(figure)))
    return pictures


def _sheet(rows: Sequence[NodeSample], findings: Iterable[HardwareAlert]) -> Figure:
    nodes = sorted({row.node for row in rows})
    if len(nodes) != 1:
        raise ValueError(f"rows: received those of {len(nodes)} nodes, expected those of one")
    time = Timeline(rows, [found for found in findings if found.node == nodes[0]])
    panels = _panels(rows)
    wide = len(panels) % 2  # the first one takes both columns then
    lines = (len(panels) + wide) // 2
    width, top, line = 13.2, 1.25, 2.0
    height = top + lines * line
    figure = Figure(figsize=(width, height), dpi=DPI)
    write_heading(figure, f"Hardware of {nodes[0]}", _subtitle(rows, time))
    marks: dict[str, Any] = {"loc": "upper right", "ncols": 3, "frameon": False, "labelcolor": SOFT, "fontsize": 8.5}
    figure.legend(handles=mark_handles(), bbox_to_anchor=(0.99, 1 - 0.12 / height), **marks)
    for place, panel in enumerate(panels):
        row, column = divmod(place + wide if place else 0, 2)
        left = 0.6 if column == 0 else 7.15
        across = (12.35 if wide and not place else 5.8) / width
        lower = height - top - row * line - 1.35
        axes = figure.add_axes((left / width, lower / height, across, 1.35 / height))
        draw_panel(axes, panel, time, named=row == 0, bottom=row == lines - 1)
    return figure


def _subtitle(rows: Sequence[NodeSample], time: Timeline) -> str:
    last = rows[-1]
    parts = [gpus_text(last.gpus)] if last.gpus else []
    if last.host.num_cpus is not None:
        parts.append(f"{last.host.num_cpus:g} CPUs")
    if last.host.memory_total_bytes is not None:
        parts.append(f"{format_memory(last.host.memory_total_bytes)} of memory")
    parts.append(f"watched for {format_duration(time.total_s)}")
    pauses = len(time.pauses)
    return " · ".join(parts) + (f", {format_count(pauses, 'pause')} cut out" if pauses else "")


def _panels(rows: Sequence[NodeSample]) -> list[TimePanel]:
    """The quantities of a node: of its GPUs, where it has some, in the left column, the others in the right."""
    host = [
        TimePanel(
            title="Processors",
            curves=[
                TimeCurve("all processes", [row.host.cpu_percent for row in rows]),
                TimeCurve("this run", [row.host.tree_cpu_percent for row in rows]),
            ],
            top=100.0,
        ),
        TimePanel(
            title="Memory and disk in use",
            curves=[
                TimeCurve("memory", [_share(row.host.memory_used_bytes, row.host.memory_total_bytes) for row in rows]),
                TimeCurve("/dev/shm", [_share(row.host.shm_used_bytes, row.host.shm_total_bytes) for row in rows]),
                TimeCurve("disk", [_has_values(row) for row in rows]),
            ],
            top=100.0,
            rules=("memory", "disk"),
        ),
        TimePanel(
            title="Network",
            curves=[
                TimeCurve("in", [_mega(row.host.network_in_bytes_per_s) for row in rows]),
                TimeCurve("out", [_mega(row.host.network_out_bytes_per_s) for row in rows]),
            ],
            unit="MB/s",
        ),
        TimePanel(
            title="Disk",
            curves=[
                TimeCurve("read", [_mega(row.host.disk_read_bytes_per_s) for row in rows]),
                TimeCurve("written", [_mega(row.host.disk_write_bytes_per_s) for row in rows]),
            ],
            unit="MB/s",
        ),
    ]
    if any(row.loop for row in rows):
        waited = [None if row.loop is None else 100.0 * row.loop.wait_share for row in rows]
        limits = [THRESHOLDS["waiting"].warning or 0.0]
        wait = TimePanel(
            title="Time that the device waited for data",
            curves=[TimeCurve("", waited)],
            top=100.0,
            rules=("waiting",),
            limits=limits,
        )
        host.insert(0, wait)
    gpus = _gpu_panels(rows)[: len(host)]
    if not gpus:
        return host
    return list(itertools.chain.from_iterable(zip(gpus, host, strict=True)))


def _gpu_panels(rows: Sequence[NodeSample]) -> list[TimePanel]:
    indices = sorted({gpu.index for row in rows for gpu in row.gpus})
    if not indices:
        return []

    def panel(title: str, value: Callable[[GpuReading], float | None], **about: Any) -> TimePanel:
        curves = []
        for index in indices:
            found = [next((gpu for gpu in row.gpus if gpu.index == index), None) for row in rows]
            curves.append(TimeCurve(f"GPU {index}", [None if gpu is None else value(gpu) for gpu in found]))
        return TimePanel(title=title, curves=curves, many=True, **about)

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


def _share(used: float | None, total: float | None) -> float | None:
    return 100.0 * used / total if used is not None and total else None


def _has_values(row: NodeSample) -> float | None:
    free, total = row.host.disk_free_bytes, row.host.disk_total_bytes
    return None if free is None or not total else 100.0 * (1.0 - free / total)


def _mega(value: float | None) -> float | None:
    return None if value is None else value / 1e6
