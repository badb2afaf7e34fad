"""Rules that measure how close a node is to trouble, over its newest samples; pure.

A rule only measures. `thresholds.THRESHOLDS` says from which value on it matters, `alerts.AlertTracker` when it is
reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pharmclf.core.units import format_memory, format_size
from pharmclf.monitoring.bottleneck import RunContext, find_bottleneck
from pharmclf.monitoring.gpu import HARMFUL
from pharmclf.monitoring.samples import GpuReading, HostReading, NodeSample

WINDOW_S = 120.0
"""Age of the oldest sample that rules use."""
LIMIT = "{limit}"
"""Placeholder for the limit in the text of a measurement."""
_MINUTE_S = 60.0
_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A value that a threshold applies to."""

    rule: str
    """A key of `THRESHOLDS`."""
    value: float
    """In the unit of the threshold."""
    text: str
    """What the subject does; with `LIMIT`."""
    remedy: str
    subject: str = ""
    """Part of the node that an alert names; "": the node."""
    device: str = ""
    """GPU 0; "": the node. Together with node and rule it identifies an alert."""


def measure_all(samples: Sequence[NodeSample], context: RunContext) -> list[Measurement]:
    """Apply all rules to the samples of a node, the newest last; those of the last `WINDOW_S` count."""
    window = newest_samples(samples, WINDOW_S)
    if not window:
        return []
    host, measurements = window[-1].host, list[Measurement | None]()
    for gpu in window[-1].watched_gpus:
        measurements += [_temperature(gpu), _throttling(gpu, window), _gpu_memory(gpu), _gpu_errors(gpu)]
        measurements += [_gpu_lost(gpu), _gpu_unused(gpu, window, context)]
    measurements += [_waiting(window, context), _memory(host), _disk(host), _shared_memory(host)]
    return [measurement for measurement in measurements if measurement]


def newest_samples(samples: Sequence[NodeSample], seconds: float) -> list[NodeSample]:
    """Samples that end within some seconds before the last one, and not after it, as where the clock was set back."""
    return [sample for sample in samples if samples[-1].at_s - seconds < sample.at_s <= samples[-1].at_s]


def _on_gpu(gpu: GpuReading, rule: str, value: float, text: str, remedy: str) -> Measurement:
    return Measurement(
        rule=rule, value=value, text=text, remedy=remedy, subject=_gpu_name(gpu), device=f"GPU {gpu.index}"
    )


def _gpu_name(gpu: GpuReading) -> str:
    return f"GPU {gpu.index} ({gpu.name})" if gpu.name else f"GPU {gpu.index}"


def _temperature(gpu: GpuReading) -> Measurement | None:
    if gpu.temperature_c is None:
        return None
    remedy = (
        "It will slow down to protect itself: check its fans and the air around it, or lower its power limit "
        "(nvidia-smi -pl)"
    )
    return _on_gpu(gpu, "temperature", gpu.temperature_c, f"is at {gpu.temperature_c:.0f} °C{LIMIT}", remedy)


def _throttling(gpu: GpuReading, samples: Sequence[NodeSample]) -> Measurement:
    readings = [
        (reading, sample.seconds)
        for sample in newest_samples(samples, _MINUTE_S)
        for reading in sample.gpus
        if reading.index == gpu.index
    ]
    slowed_s = {
        reason: sum(seconds * reading.throttle.get(reason, 0.0) for reading, seconds in readings) for reason in HARMFUL
    }
    reason = max(slowed_s, key=lambda name: slowed_s[name])
    value = min(_MINUTE_S, slowed_s[reason])
    clocks = [
        reading.sm_clock_mhz
        for reading, _ in readings
        if reading.throttle.get(reason) and reading.sm_clock_mhz is not None
    ]
    clock = f", down to {min(clocks):.0f} MHz" if clocks else ""
    remedy = "Cool it, lower its power limit (nvidia-smi -pl), or use another machine"
    if reason == "power brake":
        remedy = "Its power supply is too weak: check the cables and the power of the machine, or use another"
    text = f"was slowed down for {value:.0f} s of the last minute{LIMIT}{clock}: {reason}"
    return _on_gpu(gpu, "throttling", value, text, remedy)


def _gpu_memory(gpu: GpuReading) -> Measurement | None:
    if gpu.memory_percent is None or gpu.memory_used_bytes is None or gpu.memory_total_bytes is None:
        return None
    processes = [
        f"process {process.pid}" + (f" {format_memory(process.used_bytes)}" if process.used_bytes else "")
        for process in gpu.processes[:3]
    ]
    text = (
        f"has {gpu.memory_percent:.0f} % of its memory in use{LIMIT}, {format_memory(gpu.memory_used_bytes)} of "
        f"{format_memory(gpu.memory_total_bytes)}" + (f" (held by {', '.join(processes)})" if processes else "")
    )
    remedy = "The next step may run out of memory: end other processes on it, or give a smaller --batch-size"
    return _on_gpu(gpu, "gpu memory", gpu.memory_percent, text, remedy)


def _gpu_errors(gpu: GpuReading) -> Measurement | None:
    if gpu.ecc_errors is None:
        return None
    text = f"has had {gpu.ecc_errors} memory errors that could not be corrected"
    remedy = "Its results cannot be trusted: train on another one, and have this one reset or replaced"
    return _on_gpu(gpu, "gpu errors", float(gpu.ecc_errors), text, remedy)


def _gpu_lost(gpu: GpuReading) -> Measurement:
    remedy = "Restart its node; the run resumes on other nodes from its newest checkpoint"
    return _on_gpu(gpu, "gpu lost", float(gpu.lost), "does not answer any more", remedy)


def _gpu_unused(gpu: GpuReading, samples: Sequence[NodeSample], context: RunContext) -> Measurement | None:
    """A GPU that is idle while steps are taken: TensorFlow did not find it, or there are too few workers."""
    trained = [sample for sample in samples if sample.loop is not None and sample.loop.steps > 0]
    seconds = sum(sample.seconds for sample in trained)
    if not context.wants_gpus or seconds < _MINUTE_S or _wait_percent(trained) > 50.0:
        return None
    mean = _mean_utilisation(trained, gpu.index)
    if mean is None:
        return None
    remedy = "Give one worker for each GPU with --num-workers, or run pharmclf doctor to see why it is not used"
    if gpu.index in samples[-1].ours:
        remedy = "TensorFlow does not use it: pharmclf doctor says why"
    return _on_gpu(gpu, "gpu unused", mean, f"is {mean:.0f} % busy{LIMIT} while steps are taken", remedy)


def _waiting(samples: Sequence[NodeSample], context: RunContext) -> Measurement | None:
    """Share of the time that a device waits for data, over the samples of the current phase."""
    last = samples[-1]
    trained = [sample for sample in samples if sample.loop is not None and sample.phase == last.phase]
    if last.loop is None or sum(sample.seconds for sample in trained) < 0.95 * _MINUTE_S:
        return None
    percent, bottleneck = _wait_percent(trained), find_bottleneck(trained, context)
    gpus = [gpu for gpu in last.gpus if gpu.index == last.loop.gpu] or list(last.watched_gpus)
    subject, busy = f"worker {last.loop.rank}", ""
    if len(gpus) == 1:
        subject, mean = _gpu_name(gpus[0]), _mean_utilisation(trained, gpus[0].index)
        busy = "" if mean is None else f", its utilisation is {mean:.0f} %"
    return Measurement(
        rule="waiting",
        value=percent,
        text=f"waits for data {percent:.0f} % of the time{LIMIT}{busy}; the slow stage is {bottleneck.stage}, "
        f"{bottleneck.evidence}",
        remedy=bottleneck.remedy,
        subject=subject,
    )


def _wait_percent(samples: Sequence[NodeSample]) -> float:
    loops = [sample.loop for sample in samples if sample.loop is not None]
    seconds = sum(loop.seconds for loop in loops)
    return 100.0 * sum(loop.wait_share * loop.seconds for loop in loops) / seconds if seconds > 0 else 0.0


def _mean_utilisation(samples: Sequence[NodeSample], index: int) -> float | None:
    """Of a GPU, in percent; None where a sample does not have it."""
    values = [gpu.utilisation_percent for sample in samples for gpu in sample.gpus if gpu.index == index]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(samples) else None


def _memory(host: HostReading) -> Measurement | None:
    used, total = host.memory_used_bytes, host.memory_total_bytes
    if used is None or not total:
        return None
    percent = 100.0 * used / total
    return Measurement(
        rule="memory",
        value=percent,
        text=f"has {percent:.0f} % of its memory in use{LIMIT}, {format_memory(used)} of {format_memory(total)}",
        remedy="From 95 % on Ray ends tasks, and the system may end processes: end others, or use more memory",
    )


def _disk(host: HostReading) -> Measurement | None:
    if host.disk_free_bytes is None or not host.disk_total_bytes:
        return None
    percent = 100.0 * (1.0 - host.disk_free_bytes / host.disk_total_bytes)
    return Measurement(
        rule="disk",
        value=percent,
        text=f"is {percent:.0f} % full{LIMIT}, {format_size(host.disk_free_bytes)} are left",
        remedy="From 95 % on Ray writes no objects to it: delete old runs or cached features (pharmclf cache)",
        subject=f"the disk of {host.disk_folder}",
    )


def _shared_memory(host: HostReading) -> Measurement | None:
    if host.shm_total_bytes is None:
        return None
    return Measurement(
        rule="shared memory",
        value=host.shm_total_bytes / _GIB,
        text=f"has {format_memory(host.shm_total_bytes)}{LIMIT}",
        remedy="Ray keeps decoded images there, or on disk where it is small: docker run --shm-size=8g, or in "
        "Kubernetes a volume emptyDir with medium: Memory",
        subject="/dev/shm",
    )
