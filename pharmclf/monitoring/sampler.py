"""Reads a node, and the loop of a worker, every few seconds in a thread of its own.

What is read is handed on as events: on a worker they travel to the driver with its other events. Nothing here can fail
or hold up a run: what raises is said once in the log, and the next reading follows.
"""

from __future__ import annotations

import contextlib
import logging
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
_SHUTDOWN_TIMEOUT_S = 2.0  # for a reading under way, at the end
_log = logging.getLogger(__name__)

Send = Callable[[Event], None]
"""As `Callback.on_event`; called from another thread, must not wait."""


class LogOnce:
    """Lets errors pass that must not end a run, and says each once in the log."""

    def __init__(self, log: logging.Logger) -> None:
        self._log, self._said = log, set[str]()

    @contextlib.contextmanager
    def log_errors_once(self, what: str) -> Iterator[None]:
        """Within, an error ends what is within, and nothing else.

        Args:
            what: cannot be done then, in words.
        """
        try:
            yield
        except Exception as error:
            if what not in self._said:
                self._log.warning("%s, and the run goes on without: %s", what, format_error(error))
            self._said.add(what)


class LoopClock(Protocol):
    """What a training loop says of itself to other threads."""

    beats: int
    """Batches that it has come to."""

    def waited_s(self) -> float:
        """Seconds so far in which its device waited for a batch, those of a wait under way included."""


class NodeSampler:
    """This node: its host, and its GPUs where there are some."""

    def __init__(self, node: str, folders: Sequence[str] = (), nvml: Nvml | None = None) -> None:
        """Open the driver's library and begin to count.

        Args:
            node: address of this node.
            folders: local ones, whose disks are watched.
            nvml: its GPUs; the driver is asked if not given.
        """
        self._node, self._host, self._nvml, self._no_gpus = node, HostSampler(folders), nvml, ""
        if nvml is None:
            try:
                self._nvml = DriverNvml()
            except NvmlUnavailableError as error:
                self._no_gpus = str(error)

    def read(self, seconds: float) -> NodeSample:
        """The node now.

        Args:
            seconds: since the last reading.
        """
        gpus, no_gpus = self._gpus()
        return NodeSample(
            at_s=time.time(), seconds=seconds, node=self._node, host=self._host.read(), gpus=gpus, no_gpus=no_gpus
        )

    def _gpus(self) -> tuple[tuple[GpuReading, ...], str]:
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
        """Begin to count.

        Args:
            clock: of the loop.
            rank: of the worker.
            gpu: index of the GPU that it drives.
        """
        self._clock, self._rank, self._gpu = clock, rank, gpu
        self._beats, self._waited_s, self._cpu_s = clock.beats, clock.waited_s(), time.process_time()

    def read(self, seconds: float) -> LoopReading | None:
        """What it has done since the last reading; None: it has not come to its first batch.

        Args:
            seconds: since then.
        """
        beats, waited_s, cpu_s = self._clock.beats, self._clock.waited_s(), time.process_time()
        came, waited, used = beats - self._beats, waited_s - self._waited_s, cpu_s - self._cpu_s
        self._beats, self._waited_s, self._cpu_s = beats, waited_s, cpu_s
        if seconds <= 0 or beats == 0:
            return None
        return LoopReading(
            rank=self._rank,
            gpu=self._gpu,
            seconds=seconds,
            steps=came,
            wait_share=min(1.0, max(0.0, waited / seconds)),
            cpu_percent=100.0 * used / seconds,
        )


class Sampler:
    """Reads every few seconds, from its beginning to `close`."""

    def __init__(
        self,
        send: Send,
        *,
        node: str,
        every_s: float,
        machine: Callable[[], NodeSampler] | None = None,
        loop: LoopSampler | None = None,
    ) -> None:
        """Begin, in a thread of its own.

        Args:
            send: takes the events.
            node: address of this node.
            every_s: seconds between readings.
            machine: opens the reader of the node, in that thread; None: another process of this node reads it.
            loop: of this process; None: it trains nothing.
        """
        self._send, self._node, self._open, self._loop = send, node, machine, loop
        self._machine: NodeSampler | None = None
        self._errors = LogOnce(_log)
        self._last_s: float | None = None  # of the latest reading, monotonic; None: the node is not opened yet
        self._task = BackgroundTask("hardware", self._read_next, every_s=every_s, at_start=True)

    def close(self) -> None:
        """End; a reading under way is waited for a moment."""
        self._task.close(_SHUTDOWN_TIMEOUT_S)

    def _read_next(self) -> None:
        if self._last_s is None:
            with self._errors.log_errors_once(f"the hardware of {self._node} cannot be opened"):
                self._machine = self._open() if self._open else None
            self._last_s = time.monotonic()
            return
        now = time.monotonic()
        self._read(now - self._last_s)
        self._last_s = now

    def _read(self, seconds: float) -> None:
        if self._loop:
            with self._errors.log_errors_once("the loop cannot be read"):
                if reading := self._loop.read(seconds):
                    self._send(LoopSampled(node=self._node, reading=reading))
        if self._machine:
            with self._errors.log_errors_once(f"the hardware of {self._node} cannot be read"):
                self._send(NodeSampled(sample=self._machine.read(seconds)))


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
    """Within, this process tells of its loop and, where it is asked to, of its node. (all ranks)

    Args:
        send: takes the events.
        node: address of this node.
        every_s: seconds between readings; 0: nothing is read.
        clock: of the loop of this process.
        rank: of this worker.
        whole_node: whether the node is read too; one process of each node does.
        folders: local ones, whose disks are watched then.
    """
    if every_s <= 0:
        yield
        return
    sampler = Sampler(
        send,
        node=node,
        every_s=every_s,
        machine=(lambda: NodeSampler(node, folders)) if whole_node else None,
        loop=LoopSampler(clock, rank, visible_gpu()) if clock else None,
    )
    try:
        yield
    finally:
        sampler.close()


def visible_gpu() -> int | None:
    """Index of the one GPU that this process was given; None where it was given none, several, or one by its name."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return int(given[0]) if len(given) == 1 and given[0].strip().isdigit() else None
