"""Samples a node, and the training loop of a worker, every few seconds in a thread.

Samples are sent as events; those of a worker reach the driver with its other events. Nothing here can fail or delay a
run: an error is logged, and the next sample follows.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from pharmclf.core.background import BackgroundTask
from pharmclf.core.errors import format_error
from pharmclf.core.events import Event
from pharmclf.monitoring.events import LoopSampled, NodeSampled
from pharmclf.monitoring.gpu import DriverNvml, Nvml, NvmlUnavailableError, read_gpus
from pharmclf.monitoring.host import HostSampler
from pharmclf.monitoring.samples import GpuReading, LoopReading, NodeSample

_LIST_PROCESSES_PERCENT = 90.0  # of a GPU's memory in use, from which its processes are listed
SHUTDOWN_TIMEOUT_S = 2.0

Send = Callable[[Event], None]
"""As `Callback.on_event`; called from another thread, must not wait."""


class LoopClock(Protocol):
    """Counters of a training loop that other threads may read."""

    beats: int
    """Batches that it has received."""

    def waited_s(self) -> float:
        """Seconds so far in which its device waited for a batch, a current wait included."""


class NodeSampler:
    """This node: its host, and its GPUs where there are some."""

    def __init__(self, node: str, folders: Sequence[str] = (), nvml: Nvml | None = None) -> None:
        """Open the driver's library, unless GPUs are given; start to count, and to watch the disks of local folders."""
        self._node, self._host, self._nvml, self._no_gpus = node, HostSampler(folders), nvml, ""
        if nvml is None:
            try:
                self._nvml = DriverNvml()
            except NvmlUnavailableError as error:
                self._no_gpus = str(error)

    def read(self, seconds: float) -> NodeSample:
        """The node now, so many seconds after the last reading."""
        gpus, no_gpus = self._read_gpus()
        return NodeSample(
            at_s=time.time(), seconds=seconds, node=self._node, host=self._host.read(), gpus=gpus, no_gpus=no_gpus
        )

    def _read_gpus(self) -> tuple[tuple[GpuReading, ...], str]:
        """The GPUs, or why there are none."""
        if self._nvml is None:
            return (), self._no_gpus
        try:
            return read_gpus(self._nvml, _LIST_PROCESSES_PERCENT), ""
        except Exception as error:  # the host is sampled all the same
            return (), f"the driver cannot be queried any more: {format_error(error)}"


class LoopSampler:
    """The training loop of this process."""

    def __init__(self, clock: LoopClock, rank: int = 0, gpu: int | None = None) -> None:
        """Start to count; `gpu` is the index of the GPU that the worker drives."""
        self._clock, self._rank, self._gpu = clock, rank, gpu
        self._beats, self._waited_s, self._cpu_s = clock.beats, clock.waited_s(), time.process_time()

    def read(self, seconds: float) -> LoopReading | None:
        """Work in the seconds since the last reading; None before the first batch."""
        beats, waited_s, cpu_s = self._clock.beats, self._clock.waited_s(), time.process_time()
        steps, wait_s, used_s = beats - self._beats, waited_s - self._waited_s, cpu_s - self._cpu_s
        self._beats, self._waited_s, self._cpu_s = beats, waited_s, cpu_s
        if seconds <= 0 or beats == 0:
            return None
        return LoopReading(
            rank=self._rank,
            gpu=self._gpu,
            seconds=seconds,
            steps=steps,
            wait_share=min(1.0, max(0.0, wait_s / seconds)),
            cpu_percent=100.0 * used_s / seconds,
        )


def start_sampling(
    send: Send,
    *,
    node: str,
    every_s: float,
    open_node: Callable[[], NodeSampler] | None = None,
    loop: LoopSampler | None = None,
) -> BackgroundTask:
    """Sample every few seconds in a thread until the task is closed, with `SHUTDOWN_TIMEOUT_S` for a running reading.

    Args:
        open_node: opens the node, in that thread; None: another process of this node samples it.
        loop: of this process; None: it trains nothing.
    """
    sampler: NodeSampler | None = None
    last_s: float | None = None  # monotonic; None: the node is not opened yet

    def sample() -> None:
        nonlocal sampler, last_s
        before, last_s = last_s, time.monotonic()
        if before is None:
            sampler = open_node() if open_node else None
            last_s = time.monotonic()
            return
        if loop and (reading := loop.read(last_s - before)):
            send(LoopSampled(node=node, reading=reading))
        if sampler:
            send(NodeSampled(sample=sampler.read(last_s - before)))

    failure = f"the hardware of {node} cannot be read"
    return BackgroundTask("hardware", sample, every_s=every_s, at_start=True, failure=failure)


@contextlib.contextmanager
def sampling(
    send: Send,
    *,
    node: str,
    every_s: float,
    clock: LoopClock | None = None,
    rank: int = 0,
    whole_node: bool = False,
    folders: Sequence[str] = (),
) -> Iterator[None]:
    """Sample this process's loop, and its node if requested, inside the block. (all ranks)

    Args:
        every_s: seconds between samples; 0: nothing is sampled.
        whole_node: whether this process also samples the node; one process of each node does.
        folders: local ones, whose disks are watched then.
    """
    if every_s <= 0:
        yield
        return
    task = start_sampling(
        send,
        node=node,
        every_s=every_s,
        open_node=(lambda: NodeSampler(node, folders)) if whole_node else None,
        loop=LoopSampler(clock, rank, visible_gpu()) if clock else None,
    )
    try:
        yield
    finally:
        task.close(SHUTDOWN_TIMEOUT_S)


def visible_gpu() -> int | None:
    """Index of the one GPU that this process was given; None where it has none, several, or one given by its name."""
    indices = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return int(indices[0]) if len(indices) == 1 and indices[0].strip().isdigit() else None
