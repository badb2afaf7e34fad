"""Summary of the hardware of a run; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pharmclf.core.units import format_count
from pharmclf.monitoring.gpu import HARMFUL
from pharmclf.monitoring.samples import GpuReading, NodeSample, percent, time_weighted_mean

Value = TypeVar("Value")
Number = TypeVar("Number", int, float)
_JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True, kw_only=True)
class GpuSummary:
    """One GPU of a run. What was never reported is None."""

    node: str
    index: int
    name: str
    memory_total_bytes: int | None
    peak_memory_bytes: int | None
    peak_temperature_c: float | None
    mean_utilisation_percent: float | None
    """While steps were taken, if any were."""
    throttled_s: Mapping[str, float]
    """Seconds by reason, of those in `gpu.HARMFUL`."""
    energy_kwh: float | None

    @property
    def slowed_s(self) -> float:
        """Seconds in which it was slowed down; reasons coincide, so the longest counts."""
        return max(self.throttled_s.values(), default=0.0)


@dataclass(frozen=True, kw_only=True)
class NodeSummary:
    """One node of a run. What was never reported is None."""

    node: str
    seconds: float
    """Time that was sampled."""
    num_cpus: float | None
    mean_cpu_percent: float | None
    """While steps were taken, if any were."""
    memory_total_bytes: int | None
    peak_memory_bytes: int | None
    trained_s: float
    """Time in which its workers trained."""
    waited_s: float
    """Part of it in which the device of the worker that waited most had no batch."""
    gpus: Sequence[GpuSummary]

    @property
    def peak_memory_percent(self) -> float | None:
        """Memory in use at most, of all."""
        return percent(self.peak_memory_bytes, self.memory_total_bytes)

    @property
    def wait_share(self) -> float | None:
        """Share of the training in which a device waited for data, 0..1."""
        return self.waited_s / self.trained_s if self.trained_s > 0 else None


def summarise(samples: Iterable[NodeSample]) -> list[NodeSummary]:
    """The summary of each node, in the order of their names; samples are in the order of time."""
    by_node: dict[str, list[NodeSample]] = {}
    for sample in samples:
        by_node.setdefault(sample.node, []).append(sample)
    return [_node_summary(node, by_node[node]) for node in sorted(by_node)]


def summary_line(nodes: Sequence[NodeSummary]) -> str:
    """The hardware of a run in one line for the console; "" where nothing is known."""
    gpus = [gpu for node in nodes for gpu in node.gpus]
    parts = []
    if gpus:
        parts.append(format_count(len(gpus), "GPU"))
        busy = average(gpu.mean_utilisation_percent for gpu in gpus)
        hottest, slowed = _max_known(gpu.peak_temperature_c for gpu in gpus), max(gpu.slowed_s for gpu in gpus)
        parts += [f"{busy:.0f} % busy"] if busy is not None else []
        parts += [f"at most {hottest:.0f} °C"] if hottest is not None else []
        parts += [f"slowed down for {slowed:.0f} s"] if slowed else []
    busy = average(node.mean_cpu_percent for node in nodes)
    parts += [f"processors {busy:.0f} % busy"] if busy is not None else []
    full = _max_known(node.peak_memory_percent for node in nodes)
    parts += [f"memory at most {full:.0f} % full"] if full is not None else []
    waited = _max_known(node.wait_share for node in nodes)
    parts += [f"waited for data {100 * waited:.0f} % of the training"] if waited is not None else []
    return f"hardware: {', '.join(parts)}" if parts else ""


def average(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _node_summary(node: str, samples: Sequence[NodeSample]) -> NodeSummary:
    trained = [sample for sample in samples if sample.loop is not None] or samples
    loops = [sample.loop for sample in samples if sample.loop is not None]
    return NodeSummary(
        node=node,
        seconds=sum(sample.seconds for sample in samples),
        num_cpus=_last_known(sample.host.num_cpus for sample in samples),
        mean_cpu_percent=time_weighted_mean(trained, lambda sample: sample.host.cpu_percent),
        memory_total_bytes=_last_known(sample.host.memory_total_bytes for sample in samples),
        peak_memory_bytes=_max_known(sample.host.memory_used_bytes for sample in samples),
        trained_s=sum(loop.seconds for loop in loops),
        waited_s=sum(loop.seconds * loop.wait_share for loop in loops),
        gpus=[
            _gpu_summary(node, index, samples, trained)
            for index in sorted({gpu.index for sample in samples for gpu in sample.watched_gpus})
        ],
    )


def _gpu_summary(node: str, index: int, samples: Sequence[NodeSample], trained: Sequence[NodeSample]) -> GpuSummary:
    def reading(sample: NodeSample) -> GpuReading:
        return next((gpu for gpu in sample.gpus if gpu.index == index), GpuReading(index=index))

    readings = [(reading(sample), sample.seconds) for sample in samples]
    throttled_s = {
        reason: sum(gpu.throttle.get(reason, 0.0) * seconds for gpu, seconds in readings) for reason in HARMFUL
    }
    joules = [gpu.power_w * seconds for gpu, seconds in readings if gpu.power_w is not None]
    return GpuSummary(
        node=node,
        index=index,
        name=_last_known(gpu.name or None for gpu, _ in readings) or "",
        memory_total_bytes=_last_known(gpu.memory_total_bytes for gpu, _ in readings),
        peak_memory_bytes=_max_known(gpu.memory_used_bytes for gpu, _ in readings),
        peak_temperature_c=_max_known(gpu.temperature_c for gpu, _ in readings),
        mean_utilisation_percent=time_weighted_mean(trained, lambda sample: reading(sample).utilisation_percent),
        throttled_s={reason: seconds for reason, seconds in throttled_s.items() if seconds > 0},
        energy_kwh=sum(joules) / _JOULES_PER_KWH if joules else None,
    )


def _last_known(values: Iterable[Value | None]) -> Value | None:
    return next((value for value in reversed(list(values)) if value is not None), None)


def _max_known(values: Iterable[Number | None]) -> Number | None:
    return max((value for value in values if value is not None), default=None)
