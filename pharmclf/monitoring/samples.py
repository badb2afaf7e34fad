"""Samples of a node: its GPUs, its host, and the training loop of its workers.

A sample covers one reading or many: two samples merge into one, and each field has a rule (mean, max, min, last, sum)
for it. So a file of samples stays small however long a run lasts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

_SIGNIFICANT_DIGITS = 5  # of a number in a file: more than the sensors of power, temperature and time have


def _merged_by(rule: str, default: Any = None) -> Any:
    """A field, and the rule by which two samples merge it."""
    return field(default=default, metadata={"merge": rule})


@dataclass(frozen=True, kw_only=True)
class GpuProcess:
    """A process that uses memory of a GPU."""

    pid: int
    """As the driver counts: in a container often not the number that is seen inside."""
    used_bytes: int | None
    """None where the driver does not report it."""


@dataclass(frozen=True, kw_only=True)
class GpuReading:
    """One GPU. What the driver or the card does not report is None."""

    index: int = _merged_by("last", 0)
    """As NVML counts the GPUs of the node."""
    name: str = _merged_by("last", "")
    utilisation_percent: float | None = _merged_by("mean")
    """Share of the time in which at least one kernel ran."""
    memory_used_bytes: int | None = _merged_by("max")
    memory_total_bytes: int | None = _merged_by("last")
    temperature_c: float | None = _merged_by("max")
    power_w: float | None = _merged_by("mean")
    power_limit_w: float | None = _merged_by("last")
    sm_clock_mhz: float | None = _merged_by("mean")
    memory_clock_mhz: float | None = _merged_by("mean")
    throttle: Mapping[str, float] = field(default_factory=dict, metadata={"merge": "shares"})
    """Share of the time, 0..1, by the reason that limited the clocks (see `gpu.REASONS`)."""
    ecc_errors: int | None = _merged_by("max")
    """Uncorrectable memory errors since the driver was loaded."""
    lost: bool = _merged_by("max", False)
    """Whether the driver cannot reach it any more."""
    processes: tuple[GpuProcess, ...] = _merged_by("dropped", ())
    """Those that use its memory, the largest first; listed only where it is nearly full, and not written to files."""

    @property
    def memory_percent(self) -> float | None:
        """Memory in use, of all."""
        return percent(self.memory_used_bytes, self.memory_total_bytes)


@dataclass(frozen=True, kw_only=True)
class HostReading:
    """CPUs, memory, disk and network of a node, within the limits of this container. Unknown is None."""

    num_cpus: float | None = _merged_by("last")
    """CPUs that this process may use."""
    cpu_percent: float | None = _merged_by("mean")
    """Of those CPUs, by all processes."""
    tree_cpu_percent: float | None = _merged_by("mean")
    """Of those CPUs, by Ray's processes on this node, or by this process and those below it."""
    iowait_percent: float | None = _merged_by("mean")
    """Time in which a CPU was idle and waited for a disk."""
    load: float | None = _merged_by("mean")
    """Processes that ran or waited to run, mean of a minute."""
    memory_used_bytes: int | None = _merged_by("max")
    memory_total_bytes: int | None = _merged_by("last")
    disk_read_bytes_per_s: float | None = _merged_by("mean")
    disk_write_bytes_per_s: float | None = _merged_by("mean")
    disk_folder: str | None = _merged_by("last")
    """The watched folder with the largest share of its disk in use."""
    disk_free_bytes: int | None = _merged_by("min")
    disk_total_bytes: int | None = _merged_by("last")
    network_in_bytes_per_s: float | None = _merged_by("mean")
    network_out_bytes_per_s: float | None = _merged_by("mean")
    network_link_bytes_per_s: float | None = _merged_by("last")
    """Speed of the fastest network card; None where the system does not report it, as on most virtual machines."""
    shm_used_bytes: int | None = _merged_by("max")
    """Of /dev/shm, where Ray keeps its objects."""
    shm_total_bytes: int | None = _merged_by("last")


@dataclass(frozen=True, kw_only=True)
class LoopReading:
    """The training loop of a worker."""

    rank: int = _merged_by("last", 0)
    gpu: int | None = _merged_by("last")
    """Index of the GPU that it drives; None: unknown, or none."""
    seconds: float = _merged_by("sum", 0.0)
    """Time that the reading covers."""
    steps: int = _merged_by("sum", 0)
    """Batches that it received in this time, those of the validation included."""
    wait_share: float = _merged_by("mean", 0.0)
    """Share of this time, 0..1, in which the device was idle because the next batch was not ready."""
    cpu_percent: float | None = _merged_by("mean")
    """Of the worker's process; 100: one CPU."""


@dataclass(frozen=True, kw_only=True)
class NodeSample:
    """A node at a moment, or over an interval."""

    at_s: float
    """End of the interval, seconds since 1970 by the clock of the node."""
    seconds: float
    """Its length."""
    node: str
    """Address of the node."""
    phase: str = ""
    """phase1, phase2 or test; "" outside of them."""
    host: HostReading = field(default_factory=HostReading)
    gpus: tuple[GpuReading, ...] = ()
    ours: tuple[int, ...] = ()
    """Indices of the GPUs that workers of this run drive; (): unknown, so all."""
    loop: LoopReading | None = None
    """Of the worker of this node whose device waited most; None: none takes steps."""
    no_gpus: str = ""
    """Why no GPU is seen; "" where there are some."""

    @property
    def watched_gpus(self) -> tuple[GpuReading, ...]:
        """The GPUs of the run."""
        return tuple(gpu for gpu in self.gpus if not self.ours or gpu.index in self.ours)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without what is unknown or empty."""
        return _fields_to_json(self) | {"at_s": round(self.at_s, 1), "seconds": round(self.seconds, 2)}

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> NodeSample:
        """Restore a sample; fields of another version are left out.

        Raises:
            LookupError, TypeError, ValueError: not a sample.
        """
        return NodeSample(
            at_s=float(content["at_s"]),
            seconds=float(content["seconds"]),
            node=str(content["node"]),
            phase=str(content.get("phase", "")),
            host=_restore(HostReading, content.get("host", {})),
            gpus=tuple(_restore(GpuReading, gpu) for gpu in content.get("gpus", ())),
            ours=tuple(int(index) for index in content.get("ours", ())),
            loop=_restore(LoopReading, content["loop"]) if "loop" in content else None,
            no_gpus=str(content.get("no_gpus", "")),
        )


Reading = TypeVar("Reading", GpuReading, HostReading, LoopReading)


def percent(part: float | None, whole: float | None) -> float | None:
    """A part of a whole in per cent; None where one of them is unknown."""
    return 100.0 * part / whole if part is not None and whole else None


def time_weighted_mean(samples: Sequence[NodeSample], value: Callable[[NodeSample], float | None]) -> float | None:
    """Mean over the samples in which a value is known, weighted by their length."""
    known = [(number, sample.seconds) for sample in samples if (number := value(sample)) is not None]
    seconds = sum(weight for _, weight in known)
    return sum(number * weight for number, weight in known) / seconds if seconds > 0 else None


def merge_samples(one: NodeSample, other: NodeSample) -> NodeSample:
    """Merge two samples of a node, one after the other."""
    weights = one.seconds, other.seconds
    before, after = ({gpu.index: gpu for gpu in sample.gpus} for sample in (one, other))
    return dataclasses.replace(
        other,
        seconds=one.seconds + other.seconds,
        host=_merge(one.host, other.host, weights),
        gpus=tuple(
            _merge(before[index], after[index], weights)
            if index in before and index in after
            else before.get(index) or after[index]
            for index in sorted({*before, *after})
        ),
        ours=other.ours or one.ours,
        loop=merge_loops(one.loop, other.loop),
    )


def merge_loops(one: LoopReading | None, other: LoopReading | None) -> LoopReading | None:
    """Merge two readings of a loop, one after the other; None where there is none."""
    if one is None or other is None:
        return one or other
    return _merge(one, other, (one.seconds, other.seconds))


def _merge(one: Reading, other: Reading, weights: tuple[float, float]) -> Reading:
    values: dict[str, Any] = {}
    for item in dataclasses.fields(one):
        first, second = getattr(one, item.name), getattr(other, item.name)
        if first is None or second is None:
            values[item.name] = second if first is None else first
        else:
            values[item.name] = _MERGE[item.metadata["merge"]](first, second, weights)
    return type(one)(**values)


def _mean(one: float, other: float, weights: tuple[float, float]) -> float:
    total = sum(weights)
    return (one * weights[0] + other * weights[1]) / total if total > 0 else other


def _shares(one: Mapping[str, float], other: Mapping[str, float], weights: tuple[float, float]) -> dict[str, float]:
    return {key: _mean(one.get(key, 0.0), other.get(key, 0.0), weights) for key in sorted({*one, *other})}


_MERGE: Mapping[str, Callable[[Any, Any, tuple[float, float]], Any]] = {
    "mean": _mean,
    "shares": _shares,
    "max": lambda one, other, _: max(one, other),
    "min": lambda one, other, _: min(one, other),
    "last": lambda _one, other, _: other,
    "sum": lambda one, other, _: one + other,
    "dropped": lambda _one, _other, _: (),
}


def _fields_to_json(reading: Any) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for item in dataclasses.fields(reading):
        value = getattr(reading, item.name)
        if value is None or value is False or value in ((), "", {}) or item.metadata.get("merge") == "dropped":
            continue
        content[item.name] = _to_json(value)
    return content


def _to_json(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_SIGNIFICANT_DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, tuple):
        return [_to_json(part) for part in value]
    if isinstance(value, Mapping):
        return {key: _to_json(part) for key, part in value.items()}
    return _fields_to_json(value) if dataclasses.is_dataclass(value) else value


def _restore(kind: type[Reading], content: Mapping[str, Any]) -> Reading:
    names = {item.name for item in dataclasses.fields(kind) if item.metadata["merge"] != "dropped"}
    return kind(**{name: value for name, value in content.items() if name in names})
