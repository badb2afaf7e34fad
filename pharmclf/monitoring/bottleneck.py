"""Finds the slowest stage between storage and device from the counters of a node; pure.

Stages are checked in this order: processors (decoding), network, disk, the worker's process (transfer to the device).
Where none is saturated, the node waits for the storage, or its input pipeline has too few CPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.core.units import format_size
from pharmclf.monitoring.samples import NodeSample, time_weighted_mean

_FULL_CPU_PERCENT = 85.0  # of all CPUs; the rest are moments between tasks
_OURS_PERCENT = 50.0  # of the busy CPUs: below it other processes use them
_FULL_LINK = 0.8  # of the speed of a network card; protocols take their part
_IOWAIT_PERCENT = 15.0
_FULL_WORKER_PERCENT = 90.0  # of one CPU, by the worker's process


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What the rules must know of a run."""

    remote_data: bool = False
    cached_phases: frozenset[str] = frozenset()
    """Phases that train on cached features and so neither read nor decode images."""
    wants_gpus: bool = True
    """Whether GPUs should be used where there are some."""

    @classmethod
    def of(cls, config: RunConfig) -> RunContext:
        """The context of a run that has no feature cache yet."""
        return cls(remote_data=storage.is_remote(config.data), wants_gpus=config.accelerator != "cpu")


@dataclass(frozen=True, kw_only=True)
class Bottleneck:
    """The stage that the others wait for."""

    stage: str
    evidence: str
    """What its counters show."""
    remedy: str


def find_bottleneck(samples: Sequence[NodeSample], context: RunContext) -> Bottleneck:
    """The slowest stage of a node whose device waits for data during these samples."""
    is_cached = samples[-1].phase in context.cached_phases
    reading = "reading cached features" if is_cached else "reading images"
    cpu = time_weighted_mean(samples, lambda sample: sample.host.cpu_percent)
    if cpu is not None and cpu >= _FULL_CPU_PERCENT:
        return _cpu_bottleneck(samples, cpu, is_cached)
    busy = "" if cpu is None else f", processors {cpu:.0f} % busy"
    if saturated := _io_bottleneck(samples, reading, is_cached, busy):
        return saturated
    worker = time_weighted_mean(samples, lambda sample: sample.loop.cpu_percent if sample.loop else None)
    if worker is not None and worker >= _FULL_WORKER_PERCENT and samples[-1].gpus:
        return Bottleneck(
            stage="the transfer to the device",
            evidence=f"the worker's process uses {worker / 100.0:.1f} CPUs{busy}",
            remedy="Use more workers with fewer images each, or cached features (--augment.views 4)",
        )
    if context.remote_data and not is_cached:
        received = time_weighted_mean(samples, lambda sample: sample.host.network_in_bytes_per_s) or 0.0
        return Bottleneck(
            stage="the storage (reading images)",
            evidence=f"{format_size(received)}/s are received{busy}",
            remedy="Use a bucket in the region of the nodes, give more CPUs (each reads 16 images at a time), or copy "
            "the data to their disks",
        )
    return Bottleneck(
        stage=reading,
        evidence=f"neither processors, disk nor network are saturated{busy}",
        remedy="Give the pipeline more CPUs: fewer workers on a node, or nodes with more CPUs for each device",
    )


def _cpu_bottleneck(samples: Sequence[NodeSample], cpu_percent: float, is_cached: bool) -> Bottleneck:
    """Of a node whose processors are all busy."""
    tree = time_weighted_mean(samples, lambda sample: sample.host.tree_cpu_percent)
    if tree is not None and tree < cpu_percent * _OURS_PERCENT / 100.0:
        return Bottleneck(
            stage="the processors",
            evidence=f"since other processes use them ({cpu_percent:.0f} % busy, {tree:.0f} % by this run)",
            remedy="End those processes, or give the run a separate node",
        )
    evidence = f"processors {cpu_percent:.0f} % busy"
    if is_cached:
        return Bottleneck(stage="reading cached features", evidence=evidence, remedy="Give more CPUs to each device")
    return Bottleneck(
        stage="decoding",
        evidence=evidence,
        remedy="Decode each image once (--augment.views 4), give more CPUs to each device, or store smaller images",
    )


def _io_bottleneck(samples: Sequence[NodeSample], reading: str, is_cached: bool, busy: str) -> Bottleneck | None:
    """A network or a disk at its limit."""
    received = time_weighted_mean(samples, lambda sample: sample.host.network_in_bytes_per_s)
    link = samples[-1].host.network_link_bytes_per_s
    if received is not None and link and received >= _FULL_LINK * link:
        return Bottleneck(
            stage=f"the network ({reading})",
            evidence=f"{format_size(received)}/s of {format_size(link)}/s{busy}",
            remedy="Use nodes with a faster network, or copy the data to their disks",
        )
    iowait = time_weighted_mean(samples, lambda sample: sample.host.iowait_percent)
    if iowait is not None and iowait >= _IOWAIT_PERCENT:
        read = time_weighted_mean(samples, lambda sample: sample.host.disk_read_bytes_per_s) or 0.0
        cache = ", and the cache there with PHARMCLF_STORAGE_CACHE" if is_cached else ""
        return Bottleneck(
            stage=f"the disk ({reading})",
            evidence=f"processors wait for it {iowait:.0f} % of the time, it reads {format_size(read)}/s",
            remedy=f"Put the data on a faster disk (NVMe){cache}",
        )
    return None
