"""What is read of a node every few seconds: its GPUs, its processors and disks, and the loop of its workers.

A row may stand for one reading or for many: two rows merge into one of the same form, in which each field says by its
rule (mean, greatest, least, last) what it keeps. So a file of rows stays small however long a run lasts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

_SIGNIFICANT = 5  # digits of a number in a file; of power, temperature and shares that is more than the sensors know


def _kept(rule: str, default: Any = None) -> Any:
    """A field, and what of it is kept where two rows become one."""
    return field(default=default, metadata={"merge": rule})


@dataclass(frozen=True, kw_only=True)
class GpuProcess:
    """A process that holds memory of a GPU."""

    pid: int
    """As the driver counts: in a container often not the number that is seen inside."""
    used_bytes: int | None
    """None where the driver does not tell."""


@dataclass(frozen=True, kw_only=True)
class GpuReading:
    """One GPU. What the driver or the card does not tell is None."""

    index: int = _kept("last", 0)
    """As NVML counts the GPUs of the node."""
    name: str = _kept("last", "")
    utilisation_percent: float | None = _kept("mean")
    """Share of the time in which at least one kernel ran."""
    memory_used_bytes: int | None = _kept("most")
    memory_total_bytes: int | None = _kept("last")
    temperature_c: float | None = _kept("most")
    power_w: float | None = _kept("mean")
    power_limit_w: float | None = _kept("last")
    sm_clock_mhz: float | None = _kept("mean")
    memory_clock_mhz: float | None = _kept("mean")
    throttle: Mapping[str, float] = field(default_factory=dict, metadata={"merge": "shares"})
    """Share of the time, 0..1, by the reason that held the clocks down, in words (see `gpu.REASONS`)."""
    ecc_errors: int | None = _kept("most")
    """Errors of the memory that could not be corrected, since the driver was loaded."""
    lost: bool = _kept("most", False)
    """Whether the driver cannot reach it any more."""
    processes: tuple[GpuProcess, ...] = _kept("dropped", ())
    """Those that use its memory, the largest first; listed only where it is nearly full, and not written to files."""

    @property
    def memory_percent(self) -> float | None:
        """Memory in use, of all."""
        if self.memory_used_bytes is None or not self.memory_total_bytes:
            return None
        return 100.0 * self.memory_used_bytes / self.memory_total_bytes


@dataclass(frozen=True, kw_only=True)
class HostReading:
    """Processors, memory, disk and network of a node, within the limits of this container. Unknown is None."""

    num_cpus: float | None = _kept("last")
    """CPUs that this process may use."""
    cpu_percent: float | None = _kept("mean")
    """Of those CPUs, by all processes."""
    tree_cpu_percent: float | None = _kept("mean")
    """Of those CPUs, by Ray's processes on this node, or by this process and those below it."""
    iowait_percent: float | None = _kept("mean")
    """Time in which a CPU was idle because a disk was waited for."""
    load: float | None = _kept("mean")
    """Processes that ran or waited to run, mean of a minute."""
    memory_used_bytes: int | None = _kept("most")
    memory_total_bytes: int | None = _kept("last")
    disk_read_bytes_per_s: float | None = _kept("mean")
    disk_write_bytes_per_s: float | None = _kept("mean")
    disk_folder: str | None = _kept("last")
    """The watched folder with the largest share of its disk in use."""
    disk_free_bytes: int | None = _kept("least")
    disk_total_bytes: int | None = _kept("last")
    network_in_bytes_per_s: float | None = _kept("mean")
    network_out_bytes_per_s: float | None = _kept("mean")
    network_link_bytes_per_s: float | None = _kept("last")
    """What the fastest network card can do; None where the system does not tell, as on most virtual machines."""
    shm_used_bytes: int | None = _kept("most")
    """Of /dev/shm, where Ray keeps its objects."""
    shm_total_bytes: int | None = _kept("last")


@dataclass(frozen=True, kw_only=True)
class LoopReading:
    """The training loop of a worker."""

    rank: int = _kept("last", 0)
    gpu: int | None = _kept("last")
    """Index of the GPU that it drives; None: unknown, or none."""
    seconds: float = _kept("sum", 0.0)
    """That this reading stands for."""
    steps: int = _kept("sum", 0)
    """Batches that it came to in them, those of the validation included."""
    wait_share: float = _kept("mean", 0.0)
    """Share of them, 0..1, in which the device had nothing to do because the next batch was not there."""
    cpu_percent: float | None = _kept("mean")
    """Of the worker's own process; 100: one CPU."""


@dataclass(frozen=True, kw_only=True)
class NodeSample:
    """A node at a moment, or over a while."""

    at_s: float
    """The end of the while, seconds since 1970 by the clock of the node."""
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
        content = _plain(self)
        content["at_s"], content["seconds"] = round(self.at_s, 1), round(self.seconds, 2)
        return content

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> NodeSample:
        """The row again; fields of another version are left out.

        Raises:
            LookupError, TypeError, ValueError: not a row.
        """
        values = {item.name: content[item.name] for item in dataclasses.fields(NodeSample) if item.name in content}
        values |= {"at_s": float(content["at_s"]), "seconds": float(content["seconds"]), "node": str(content["node"])}
        values["host"] = _read(HostReading, content.get("host", {}))
        values["gpus"] = tuple(_read(GpuReading, gpu) for gpu in content.get("gpus", ()))
        values["ours"] = tuple(int(index) for index in content.get("ours", ()))
        values["loop"] = _read(LoopReading, content["loop"]) if "loop" in content else None
        return NodeSample(**values)


Reading = TypeVar("Reading", GpuReading, HostReading, LoopReading)


def _plain(reading: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in dataclasses.fields(reading):
        value = getattr(reading, item.name)
        if value is None or value is False or value in ((), "", {}) or item.metadata.get("merge") == "dropped":
            continue
        found[item.name] = _plain_value(value)
    return found


def _plain_value(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_SIGNIFICANT}g}") if math.isfinite(value) else None
    if isinstance(value, tuple):
        return [_plain_value(part) for part in value]
    if isinstance(value, Mapping):
        return {key: _plain_value(part) for key, part in value.items()}
    return _plain(value) if dataclasses.is_dataclass(value) else value


def _read(kind: type[Reading], content: Mapping[str, Any]) -> Reading:
    known = {item.name for item in dataclasses.fields(kind)} - {"processes"}
    return kind(**{name: value for name, value in content.items() if name in known})


def merge_samples(one: NodeSample, other: NodeSample) -> NodeSample:
    """Two rows of a node, one after the other, as one."""
    weights = one.seconds, other.seconds
    before = {gpu.index: gpu for gpu in one.gpus}
    after = {gpu.index: gpu for gpu in other.gpus}
    return dataclasses.replace(
        other,
        seconds=one.seconds + other.seconds,
        host=_merged(one.host, other.host, weights),
        gpus=tuple(_either(before.get(index), after.get(index), weights) for index in sorted({*before, *after})),
        ours=other.ours or one.ours,
        loop=merge_loops(one.loop, other.loop),
    )


def merge_loops(one: LoopReading | None, other: LoopReading | None) -> LoopReading | None:
    """Two readings of a loop, one after the other, as one; None where there is none."""
    if one is None or other is None:
        return one or other
    return _merged(one, other, (one.seconds, other.seconds))


def _either(one: GpuReading | None, other: GpuReading | None, weights: tuple[float, float]) -> GpuReading:
    if one is None or other is None:
        return one or other or GpuReading()
    return _merged(one, other, weights)


def _merged(one: Reading, other: Reading, weights: tuple[float, float]) -> Reading:
    values: dict[str, Any] = {}
    for item in dataclasses.fields(one):
        first, second = getattr(one, item.name), getattr(other, item.name)
        if first is None or second is None:
            values[item.name] = second if first is None else first
        else:
            values[item.name] = _RULES[item.metadata["merge"]](first, second, weights)
    return type(one)(**values)


def _mean(one: float, other: float, weights: tuple[float, float]) -> float:
    total = sum(weights)
    return (one * weights[0] + other * weights[1]) / total if total > 0 else other


def _shares(one: Mapping[str, float], other: Mapping[str, float], weights: tuple[float, float]) -> dict[str, float]:
    return {word: _mean(one.get(word, 0.0), other.get(word, 0.0), weights) for word in sorted({*one, *other})}


_RULES: Mapping[str, Callable[[Any, Any, tuple[float, float]], Any]] = {
    "mean": _mean,
    "shares": _shares,
    "most": lambda one, other, _: max(one, other),
    "least": lambda one, other, _: min(one, other),
    "last": lambda _one, other, _: other,
    "sum": lambda one, other, _: one + other,
    "dropped": lambda _one, _other, _: (),
}
