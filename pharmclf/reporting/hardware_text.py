"""The hardware of a run as lines of text for its report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from pharmclf.core.units import format_count, format_duration, format_memory
from pharmclf.monitoring.alerts import HardwareAlert
from pharmclf.monitoring.samples import GpuReading, NodeSample
from pharmclf.monitoring.summary import GpuSummary, NodeSummary, average, summarise


def hardware_lines(rows: Iterable[NodeSample], findings: Iterable[HardwareAlert] = ()) -> list[tuple[str, str]]:
    """The hardware of a run and its load, as (what, text), without what is unknown; rows are in the order of time."""
    rows = list(rows)
    nodes = summarise(rows)
    if not nodes:
        return []
    last = {row.node: row for row in rows}
    gpus = [gpu for node in nodes for gpu in node.gpus]
    facts = [("GPUs", _gpus_text([row.watched_gpus for row in last.values()]))]
    facts += _gpu_lines(gpus, len(nodes) > 1) if gpus else []
    facts += _node_lines(nodes)
    levels = Counter[str](finding.level for finding in findings)
    counts = [format_count(levels[level], level) for level in ("alarm", "warning") if levels[level]]
    facts.append(("warnings", ", ".join(counts) or "none"))
    return facts


def _gpu_lines(gpus: Sequence[GpuSummary], several: bool) -> list[tuple[str, str]]:
    def where(gpu: GpuSummary) -> str:
        return f" (GPU {gpu.index} on {gpu.node})" if several else f" (GPU {gpu.index})" if len(gpus) > 1 else ""

    facts = []
    used = [gpu.mean_utilisation_percent for gpu in gpus if gpu.mean_utilisation_percent is not None]
    if used:
        span = f", {min(used):.0f} to {max(used):.0f} %" if len(used) > 1 else ""
        facts.append(("GPU utilisation", f"mean {sum(used) / len(used):.0f} %{span}, while steps were taken"))
    if hottest := max((gpu for gpu in gpus if gpu.peak_temperature_c is not None), key=_temperature, default=None):
        facts.append(("GPU temperature", f"at most {_temperature(hottest):.0f} °C{where(hottest)}"))
    slowest = max(gpus, key=lambda gpu: gpu.slowed_s)
    slowed = f"{format_duration(slowest.slowed_s)}{where(slowest)}: {', '.join(slowest.throttled_s)}"
    facts.append(("GPUs slowed down by heat or power", slowed if slowest.slowed_s else "never"))
    if fullest := max((gpu for gpu in gpus if gpu.peak_memory_bytes is not None), key=_memory, default=None):
        total = "" if fullest.memory_total_bytes is None else f" of {format_memory(fullest.memory_total_bytes)}"
        facts.append(("GPU memory", f"at most {format_memory(_memory(fullest))}{total}{where(fullest)}"))
    energies = [gpu.energy_kwh for gpu in gpus if gpu.energy_kwh is not None]
    if energies:
        facts.append(("GPU energy", _energy(sum(energies)) + ("" if len(energies) == len(gpus) else " of those known")))
    return facts


def _node_lines(nodes: Sequence[NodeSummary]) -> list[tuple[str, str]]:
    facts = []
    waited = max((node for node in nodes if node.wait_share is not None), key=lambda node: node.waited_s, default=None)
    several = len(nodes) > 1
    if waited and waited.wait_share is not None:
        where = f" on {waited.node}, where it was most" if several else ""
        facts.append(("waited for data", f"{100 * waited.wait_share:.0f} % of the training{where}"))
    cpus = Counter(f"{node.num_cpus:g} CPUs" for node in nodes if node.num_cpus is not None)
    counted = [f"{count} × {what}" if several else what for what, count in cpus.most_common()]
    busy = average(node.mean_cpu_percent for node in nodes)
    if counted or busy is not None:
        parts = [", ".join(counted)] if counted else []
        facts.append(("processors", ", ".join([*parts, *([f"mean {busy:.0f} % busy"] if busy is not None else [])])))
    known = [node for node in nodes if node.peak_memory_percent is not None]
    if known:
        fullest = max(known, key=lambda node: node.peak_memory_percent or 0.0)
        where = f" on {fullest.node}" if several else ""
        used, total = fullest.peak_memory_bytes or 0, fullest.memory_total_bytes or 0
        facts.append(("memory", f"at most {format_memory(used)} of {format_memory(total)}{where}"))
    return [("nodes", str(len(nodes))), *facts] if several else facts


def _gpus_text(nodes: Sequence[Sequence[GpuReading]]) -> str:
    """Kinds and numbers: 8 × NVIDIA H100 80GB HBM3, on 1 of 2 nodes."""
    kinds = Counter(gpu.name or "NVIDIA GPU" for gpus in nodes for gpu in gpus)
    if not kinds:
        return "none"
    text = ", ".join(f"{count} × {name}" if count > 1 else name for name, count in kinds.most_common())
    return f"{text}, on {sum(map(bool, nodes))} of {len(nodes)} nodes" if len(nodes) > 1 else text


def _energy(kwh: float) -> str:
    return f"{kwh:.2f} kWh" if kwh >= 0.1 else f"{1000 * kwh:.1f} Wh"


def _temperature(gpu: GpuSummary) -> float:
    return gpu.peak_temperature_c or 0.0


def _memory(gpu: GpuSummary) -> int:
    return gpu.peak_memory_bytes or 0
