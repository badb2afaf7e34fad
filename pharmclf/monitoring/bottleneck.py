"""Which stage of the way from storage to device is the slow one, told by what else a node does meanwhile; pure.

Told by signs, in this order, and each names its own: a disk or a network at its end shows in its counters, decoding in
the processors, the hand-over in the one process that does it. Where nothing is at its end, something is waited for:
the answers of a storage, or processors that the pipeline was not given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pharmclf.core.units import format_size
from pharmclf.monitoring.samples import NodeSample

_FULL_CPU_PERCENT = 85.0  # of all CPUs; the rest are moments between tasks
_OURS_PERCENT = 50.0  # of the busy CPUs: below it others have them
_FULL_LINK = 0.8  # of what a network card can do; protocols take their part
_IOWAIT_PERCENT = 15.0
_FULL_WORKER_PERCENT = 90.0  # of one CPU, by the worker's own process


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What the rules must know of a run."""

    remote_data: bool = False
    """Whether the images lie in an object store."""
    kept_phases: frozenset[str] = frozenset()
    """Phases that train on kept activations and so neither read nor decode images."""
    wants_gpus: bool = True
    """Whether GPUs shall be used where there are some."""


@dataclass(frozen=True, kw_only=True)
class Bottleneck:
    """The stage that the others wait for."""

    name: str
    sign: str
    """What it is told by, in words."""
    remedy: str
    """What a person can do."""


def find_bottleneck(rows: Sequence[NodeSample], setting: RunContext) -> Bottleneck:
    """The slow stage of a node whose device waits for data.

    Args:
        rows: of the while in which it waits.
        setting: what is known of the run.
    """
    kept = rows[-1].phase in setting.kept_phases
    cpu, tree = _mean(rows, lambda row: row.host.cpu_percent), _mean(rows, lambda row: row.host.tree_cpu_percent)
    if cpu is not None and cpu >= _FULL_CPU_PERCENT:
        if tree is not None and tree < cpu * _OURS_PERCENT / 100.0:
            sign = f"since other processes take the processors ({cpu:.0f} % busy, {tree:.0f} % by this run)"
            return Bottleneck(name="the processors", sign=sign, remedy="End them, or give the run a node of its own")
        sign = f"processors {cpu:.0f} % busy"
        if kept:
            remedy = "Give more CPUs to each device"
            return Bottleneck(name="reading kept activations", sign=sign, remedy=remedy)
        return Bottleneck(
            name="decoding",
            sign=sign,
            remedy="Decode each image once (--augment.views 4), give more CPUs to each device, or store smaller images",
        )
    return _feed(rows, setting, kept, cpu)


def _feed(rows: Sequence[NodeSample], setting: RunContext, kept: bool, cpu: float | None) -> Bottleneck:
    """Of a node whose processors have time."""
    idle = "" if cpu is None else f", processors {cpu:.0f} % busy"
    what = "reading kept activations" if kept else "reading images"
    taken, link = _mean(rows, lambda row: row.host.network_in_bytes_per_s), rows[-1].host.network_link_bytes_per_s
    if taken is not None and link and taken >= _FULL_LINK * link:
        return Bottleneck(
            name=f"the network ({what})",
            sign=f"{format_size(taken)}/s of {format_size(link)}/s{idle}",
            remedy="Take nodes with a faster network, or put a copy of the data onto their disks",
        )
    waits = _mean(rows, lambda row: row.host.iowait_percent)
    if waits is not None and waits >= _IOWAIT_PERCENT:
        read = _mean(rows, lambda row: row.host.disk_read_bytes_per_s) or 0.0
        return Bottleneck(
            name=f"the disk ({what})",
            sign=f"processors wait for it {waits:.0f} % of the time, it gives {format_size(read)}/s",
            remedy="Put the data onto a faster disk (NVMe)"
            + (", and the cache there with PHARMCLF_STORAGE_CACHE" if kept else ""),
        )
    worker = _mean(rows, lambda row: row.loop.cpu_percent if row.loop else None)
    if worker is not None and worker >= _FULL_WORKER_PERCENT and rows[-1].gpus:
        return Bottleneck(
            name="the hand-over to the device",
            sign=f"the worker's process uses {worker / 100.0:.1f} CPUs{idle}",
            remedy="More workers with fewer images each, or kept activations (--augment.views 4)",
        )
    if setting.remote_data and not kept:
        return Bottleneck(
            name="the storage (reading images)",
            sign=f"{format_size(taken or 0.0)}/s come in{idle}",
            remedy="Use a bucket in the region of the nodes, give more CPUs (each reads 16 images at a time), or put a "
            "copy onto their disks",
        )
    return Bottleneck(
        name=what,
        sign=f"neither processors, disk nor network are at their end{idle}",
        remedy="Give the pipeline more CPUs: fewer workers on a node, or nodes with more CPUs for each device",
    )


def _mean(rows: Sequence[NodeSample], value: Callable[[NodeSample], float | None]) -> float | None:
    """Mean over the rows where it is known, weighted by their length."""
    known = [(found, row.seconds) for row in rows if (found := value(row)) is not None]
    seconds = sum(weight for _, weight in known)
    return sum(found * weight for found, weight in known) / seconds if seconds > 0 else None
