"""Searches for the largest micro-batch that fits, on every node that a worker may run on.

Sizes are tried in a child process of each node, because the kernel may kill it when memory runs out.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pharmclf.config import RunConfig
from pharmclf.core.compat.ray import free_resources_by_node
from pharmclf.core.errors import ConfigError
from pharmclf.core.events import ActivityStarted, Note, RunCallback
from pharmclf.core.signals import StopRequested
from pharmclf.distributed.cluster import connect, usable_nodes, wait_for_workers
from pharmclf.distributed.scaling_policy import ClusterNode, WorkerGroupSpec
from pharmclf.feature_cache.reader import free_memory_bytes
from pharmclf.models.devices import memory_limit_mb
from pharmclf.training.context import TrainingContext
from pharmclf.training.microbatch import (
    MicrobatchLimits,
    MicrobatchRecord,
    MicrobatchSearchError,
    ProbeDevice,
    classify_exit,
    extrapolate_max_rows,
    format_result,
    largest_that_fits,
    max_candidate_rows,
    min_over_nodes,
)
from pharmclf.training.phases import Phase, build_phases

_CPU_SHARE = 0.8  # of a machine's free memory, for its workers without a GPU; Ray Data decodes images there too
_PROBE_TIMEOUT_S = 900.0  # for one probe, including the start of the process
_POLL_S = 0.5
_STDERR_TAIL_BYTES = 20_000


def resolve_microbatches(
    job: TrainingContext, observer: RunCallback, earlier: MicrobatchRecord | None
) -> MicrobatchRecord:
    """The micro-batches of a run: as configured, as found before under the same memory limit, or by a search now.

    Args:
        observer: gets notes; polled for a stop request.
        earlier: the record of the run when it was started before.

    Raises:
        ConfigError: bad input, or not even one image fits.
        NodesUnavailableError: the cluster had no room for the workers in time.
        MicrobatchSearchError: an error other than out of memory.
        StopRequested: a stop was requested.
    """
    limit = memory_limit_mb()
    if job.config.microbatch_rows is not None:
        return {"found": False, "memory_limit_mb": limit, "rows": dict(job.microbatches)}
    if earlier and earlier["found"] and earlier["memory_limit_mb"] == limit:
        rows = ", ".join(f"{phase} {rows}" for phase, rows in earlier["rows"].items())
        observer.on_event(Note(text=f"microbatch auto: as found before, {rows}"))
        return earlier
    return {"found": True, "memory_limit_mb": limit, "rows": _search(job, observer)}


def _search(job: TrainingContext, observer: RunCallback) -> dict[str, int]:
    """The largest micro-batch of each phase that fits on every device; notes say what is found."""
    config, num_classes = job.config, len(job.class_names)
    connect(allow_open=config.allow_unauthenticated_cluster)
    observer.on_event(ActivityStarted(text="searching for the largest micro-batch"))
    text = "microbatch auto: searching for the largest micro-batch that fits (minutes on a GPU), "
    if config.worker_range[1] == 0:
        share = config.batch_size
        observer.on_event(Note(text=f"{text}in a child process"))
        limits = find_max_microbatch(config, num_classes, share, 1, observer.should_stop)
    else:
        workers = wait_for_workers(config, observer)
        share, nodes = -(-config.batch_size // workers.size), _candidate_nodes(workers)
        observer.on_event(Note(text=f"{text}on {', '.join(node.address for node in nodes)}"))
        limits = _search_on_nodes(config, num_classes, workers, nodes, observer.should_stop)
    for phase, rows in limits.rows.items():
        if rows == 0:
            raise ConfigError(
                f"microbatch: {phase}: the memory of {limits.device} does not hold one image of {config.image_size} "
                f"pixels with {config.backbone}. Give a smaller --image-size, fewer --unfreeze-blocks or another "
                "--backbone"
            )
        observer.on_event(Note(text=f"{format_result(phase, rows, share, limits.cap)} ({limits.device})"))
    return limits.rows


def _candidate_nodes(workers: WorkerGroupSpec) -> list[ClusterNode]:
    """The nodes with room for a worker now, or, if there is none, all that are large enough."""
    nodes, each, free = usable_nodes(), workers.each, free_resources_by_node()

    def has_room(node: ClusterNode) -> bool:
        left = free.get(node.id, {})
        return left.get("GPU", 0.0) >= each.gpus and left.get("CPU", 0.0) >= each.cpus

    large = [node for node in nodes if node.gpus >= each.gpus and node.cpus >= each.cpus]
    return [node for node in large if has_room(node)] or large or nodes


def _search_on_nodes(
    config: RunConfig,
    num_classes: int,
    workers: WorkerGroupSpec,
    nodes: list[ClusterNode],
    should_stop: Callable[[], bool],
) -> MicrobatchLimits:
    """Search on all nodes at the same time, each with the resources of a worker; the smallest device decides."""
    share, workers_per_node = -(-config.batch_size // workers.size), -(-workers.size // len(nodes))
    search = ray.remote(num_cpus=workers.each.cpus, num_gpus=workers.each.gpus, max_retries=0)(find_max_microbatch)
    tasks = [
        search.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(
            config, num_classes, share, workers_per_node, lambda: False
        )
        for node in nodes
    ]
    pending = tasks
    try:
        while pending:
            pending = ray.wait(pending, num_returns=len(pending), timeout=_POLL_S)[1]
            if should_stop():
                raise StopRequested
    finally:
        for task in pending:
            ray.cancel(task, force=True)
    limits = []
    for node, task in zip(nodes, tasks, strict=True):
        try:
            limits.append(ray.get(task))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, MicrobatchSearchError):
                raise MicrobatchSearchError(f"{node.address}: {error.cause}") from error
            raise error.cause from error
    return min_over_nodes(limits)


def find_max_microbatch(
    config: RunConfig, num_classes: int, share: int, workers_here: int, should_stop: Callable[[], bool]
) -> MicrobatchLimits:
    """Find the largest micro-batch of each phase that fits on a device of this machine.

    Probes compute a tenth more rows than the size that they try (`MARGIN`), and always on images: a phase on the
    feature cache needs less memory.

    Args:
        share: rows of one worker.
        workers_here: workers that share this machine's memory, if it has no GPU.
        should_stop: polled every half second.

    Raises:
        ConfigError: bad input that only building the networks reveals.
        MicrobatchSearchError: an error other than out of memory.
        StopRequested: a stop was requested.
    """
    setup = config, num_classes, _cpu_memory_bytes(workers_here)
    with contextlib.closing(_ProbeProcess(setup, should_stop)) as process:
        device = process.ask(())
        if not isinstance(device, ProbeDevice):
            raise MicrobatchSearchError("the memory of the device does not hold the networks alone")
        process.is_bounded = not device.gpu
        cap, limits = max_candidate_rows(share, config.batch_size, gpu=device.gpu), {}
        for phase in build_phases(config):
            taken: dict[int, int] = {}

            def fits(rows: int, phase: Phase = phase, taken: dict[int, int] = taken) -> bool:
                answer = process.ask((phase, rows, share))
                if isinstance(answer, int):
                    taken[rows] = answer
                return answer is not None

            predict = partial(extrapolate_max_rows, taken, device.memory_bytes) if device.memory_bytes else None
            limits[phase.name] = largest_that_fits(share, cap, fits, predict)
    return MicrobatchLimits(device.name, cap, limits)


def _cpu_memory_bytes(workers_here: int) -> int:
    """Memory that a worker without a GPU may use in addition to TensorFlow and its networks."""
    if limit := memory_limit_mb():
        return limit << 20
    return int(free_memory_bytes() * _CPU_SHARE / workers_here)


class _ProbeProcess:
    """A process of `microbatch_probe`; a new one after each in which memory ran out."""

    is_bounded = False
    """Whether its memory is limited."""

    def __init__(self, setup: tuple[RunConfig, int, int], should_stop: Callable[[], bool]) -> None:
        self._setup, self._should_stop = setup, should_stop
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`

    def ask(self, request: tuple[Phase, int, int] | tuple[()]) -> ProbeDevice | int | None:
        """The answer to a request, see `microbatch_probe`; None: memory ran out.

        Raises:
            As `find_max_microbatch`.
        """
        messages = (request,) if self._process else (self._setup, request)
        process = self._process or self._start()
        with contextlib.suppress(ConnectionError):  # the process is dead, which `recv` notices
            for message in messages:
                self._pipe.send(message)
        deadline = time.monotonic() + _PROBE_TIMEOUT_S
        while not self._pipe.poll(_POLL_S):
            if self._should_stop():
                raise StopRequested
            if time.monotonic() > deadline:
                raise MicrobatchSearchError(f"a probe did not end within {_PROBE_TIMEOUT_S:.0f} s. Give --microbatch N")
        answer: ProbeDevice | int | Exception | None = None
        try:
            answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._output.seek(max(0, self._output.seek(0, os.SEEK_END) - _STDERR_TAIL_BYTES))
            stderr = self._output.read().decode(errors="replace")
            if reason := classify_exit(process.wait(), stderr, bounded=self.is_bounded):
                raise MicrobatchSearchError(f"the probe process died: {reason}") from None
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            self._end()
        return answer

    def close(self) -> None:
        """End the process."""
        self._end()
        self._output.close()

    def _start(self) -> subprocess.Popen[bytes]:
        self._output.seek(0)
        self._output.truncate()
        self._pipe, theirs = multiprocessing.Pipe()
        path = os.pathsep.join(filter(None, sys.path))
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pharmclf.training.microbatch_probe", str(theirs.fileno())],
                stdout=self._output,
                stderr=self._output,
                env=os.environ | {"PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "2"},
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C goes to the run, which ends this process
            )
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self._pipe.close()
