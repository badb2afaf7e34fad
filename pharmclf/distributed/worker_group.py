"""Runs one worker group on Ray Train; forwards events, stop requests and commands, and detects hung steps."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import ray
import ray.train
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pharmclf import storage
from pharmclf.core.background import run_in_thread
from pharmclf.core.compat.ray import startup_timeout, worker_errors
from pharmclf.core.errors import ConfigError, RunError, format_error
from pharmclf.core.events import ActivityStarted, Note, RunCallback, WorkersStarted
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.core.units import format_count
from pharmclf.core.usual_times import START_WORKERS_S
from pharmclf.distributed.cluster import node_address
from pharmclf.distributed.scaling_policy import WorkerGroupSpec
from pharmclf.distributed.worker_channel import ChannelState, DriverChannel, WorkerChannel
from pharmclf.feature_cache.shards import FeatureCacheCorruptedError, FeatureCacheUnavailableError
from pharmclf.models.devices import configure_devices_for
from pharmclf.monitoring import sampling
from pharmclf.monitoring.cores import usable_cores
from pharmclf.training.context import DeviceOutOfMemoryError, TrainingContext, TrainingDivergedError
from pharmclf.training.loop_progress import LoopPosition, LoopProgress
from pharmclf.training.train_state import TrainResult

_START_TIMEOUT_S = 600.0  # to the first batch of an attempt
_STACK_DUMP_TIMEOUT_S = 15.0  # for the stack dumps of all workers, before they are killed
# raised to the caller as they are
_USER_ERRORS = (
    ConfigError,
    TrainingDivergedError,
    DeviceOutOfMemoryError,
    FeatureCacheCorruptedError,
    FeatureCacheUnavailableError,
    storage.StorageUnavailableError,
)


class WorkerGroupError(RunError):
    """Retryable failure of the workers."""


class ResourcesUnavailableError(RunError):
    """Others hold the resources that the workers requested."""


class WorkerGroupRun:
    """One attempt: the workers from their start, at the newest checkpoint, to their end."""

    def __init__(
        self, job: TrainingContext, group: WorkerGroupSpec, callback: RunCallback, number: int, excluded: Sequence[str]
    ) -> None:
        """Describe an attempt; `run` starts it.

        Args:
            number: of the attempt, from 1.
            excluded: ids of nodes that are alive for Ray and do not answer.
        """
        self.job, self.group, self.number = job, group, number
        self.nodes: dict[int, tuple[str, str]] = {}
        """Id and address of each worker's node, by rank; complete when all have started."""
        self.position: LoopPosition | None = None
        """Last known position of the loop."""
        self.hung = ""
        """Description of a hung step; "": there was none."""
        self.restart = ""
        """Why the workers were stopped, with a checkpoint, to start again; "": they were not."""
        self._callback, self._excluded = callback, excluded
        self._channel: Any = None
        self._commands: set[str] = set()
        self._dumps_until = 0.0

    def run(self, restart_reason: Callable[[], str]) -> TrainResult:
        """Train until the end, a stop, or a failure -> as `Trainer.fit`.

        Args:
            restart_reason: called every half second; returns why the workers must restart, or "".

        Raises:
            ConfigError, TrainingDivergedError, DeviceOutOfMemoryError, FeatureCacheCorruptedError,
            FeatureCacheUnavailableError, StorageUnavailableError: as a worker raised them.
            ResourcesUnavailableError: the workers were not scheduled.
            WorkerGroupError: they died or raised another error.
        """
        node = ray.get_runtime_context().get_node_id()
        here = NodeAffinitySchedulingStrategy(node, soft=False)
        self._channel = ray.remote(num_cpus=0)(DriverChannel).options(scheduling_strategy=here).remote()
        folder = tempfile.mkdtemp(prefix="pharmclf-ray-train-")  # for the files of Ray Train; it gets no checkpoints
        job = dataclasses.replace(self.job, loader_cpus=self.group.each.loader_cpus)
        settings = {"job": job, "channel": self._channel, "number": self.number, "driver_node": node}
        # GPUs of one node exchange gradients faster; without GPUs a worker needs the cores of a node
        placement = "PACK" if self.group.each.gpus else "SPREAD"
        text = f"starting {format_count(self.group.size, 'worker')}"
        self._callback.on_event(ActivityStarted(text=text, usual_s=START_WORKERS_S))
        trainer = build_trainer(_worker, settings, self.group, folder, placement=placement, excluded=self._excluded)
        try:
            run_in_thread(trainer.fit, lambda: self._monitor_loop(restart_reason))
        except Exception as error:
            raise self._to_user_error(error) from error
        finally:
            self._forward_events()
            shutil.rmtree(folder, ignore_errors=True)
        result: TrainResult | None = ray.get(self._channel.result.remote())
        if result is None:
            raise WorkerGroupError("the workers ended without a result")
        return result

    def _monitor_loop(self, restart_reason: Callable[[], str]) -> None:
        """One poll, every half second in the main thread of the driver."""
        silent_s = self._forward_events()
        if self._callback.should_stop():
            self._send_command("stop")
        elif not self.restart and self.nodes and (reason := restart_reason()):
            self.restart = reason
            self._callback.on_event(Note(text=f"{reason}: the workers write a checkpoint and restart"))
            self._send_command("stop")
        limit = self.job.config.step_timeout_s
        if limit and self.position is None:  # TensorFlow, the model and its weights come first
            limit = max(limit, _START_TIMEOUT_S)
        if 0 < limit <= silent_s and not self.hung:
            self.hung = f"no step for {silent_s:.0f} s"
            self._send_command("dump")
            self._dumps_until = time.monotonic() + _STACK_DUMP_TIMEOUT_S
        if self._dumps_until and time.monotonic() > self._dumps_until:
            self._dumps_until = 0.0
            self._kill_hung_workers()

    def _forward_events(self) -> float:
        """Pass the events of the workers to the callback -> seconds since the loop moved."""
        state: ChannelState = ray.get(self._channel.poll.remote())
        for event in state.events:
            self._callback.on_event(event)
        self.position = state.position or self.position
        if not self.nodes and len(state.nodes) == self.group.size:
            self.nodes = state.nodes
            addresses = tuple(sorted({address for _, address in self.nodes.values()}))
            self._callback.on_event(WorkersStarted(workers=self.group.size, nodes=addresses, attempt=self.number))
        return state.silent_s

    def _send_command(self, command: str) -> None:
        if command not in self._commands:
            self._commands.add(command)
            ray.get(self._channel.send_command.remote(command))

    def _kill_hung_workers(self) -> None:
        """Kill all workers of a hung step."""
        dumped, handles = ray.get(self._channel.get_stack_dumps.remote())
        names = ", ".join(
            f"rank {rank} on {address}" for rank, (_, address) in self.nodes.items() if rank not in dumped
        )
        folder = storage.join(self.job.folder, "stacks")
        self.hung += f"; stacks of {len(dumped)} workers are in {folder}" if dumped else ""
        self.hung += f"; no answer from {names}" if names else ""
        for handle in handles:
            ray.kill(handle)

    def _to_user_error(self, error: BaseException) -> BaseException:
        """The error for the caller: as a worker raised it, or a `WorkerGroupError` with the reason."""
        if self.hung:
            return WorkerGroupError(self.hung)
        if not self.nodes and (cause := startup_timeout(error)):
            return ResourcesUnavailableError(str(cause))
        raised = worker_errors(error)
        for cause in raised:
            if isinstance(cause, _USER_ERRORS):
                return cause
        first = raised[0] if raised else error
        return WorkerGroupError(format_error(first))


def build_trainer(
    function: Callable[[dict[str, Any]], Any],
    settings: dict[str, Any],
    group: WorkerGroupSpec,
    folder: str,
    *,
    placement: str,
    excluded: Sequence[str] = (),
) -> Any:
    """Build a TensorflowTrainer that starts its workers once, without retries.

    Args:
        function: is called by each worker with the settings.
        folder: for the files of Ray Train.
        placement: Ray's strategy, PACK or SPREAD.
        excluded: ids of nodes that get no worker.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    with suppress_native_stderr():
        from ray.train.tensorflow import TensorflowTrainer

    each = group.each
    return TensorflowTrainer(
        function,
        train_loop_config=settings,
        scaling_config=ScalingConfig(
            num_workers=group.size,
            use_gpu=each.gpus > 0,
            resources_per_worker={"CPU": each.cpus} | ({"GPU": each.gpus} if each.gpus else {}),
            placement_strategy=placement,
            label_selector={"ray.io/node-id": f"!in({','.join(excluded)})"} if excluded else None,
        ),
        # a unique name: Ray would resume a known one silently
        run_config=RunConfig(
            name=uuid.uuid4().hex[:12],
            storage_path=folder,
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
        ),
    )


def _worker(settings: dict[str, Any]) -> None:
    """The loop on one Ray Train worker. (all ranks)"""
    job: TrainingContext = settings["job"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_local_world_size()
    progress = LoopProgress()
    channel = WorkerChannel(settings["channel"], rank, progress, job.folder, settings["number"])
    try:
        from pharmclf.training import collectives, trainer

        configure_devices_for(job.config)
        threads = max(1, usable_cores() // world) if world > 1 else None
        workers = dataclasses.replace(
            collectives.init_distributed(threads), progress=progress, gradient_dtype=job.config.all_reduce_dtype
        )
        # one process samples each node; the driver samples its own
        samples_node = (
            context.get_local_rank() == 0 and ray.get_runtime_context().get_node_id() != settings["driver_node"]
        )
        with sampling(
            channel.on_event,
            node=node_address(),
            every_s=job.monitor_interval_s,
            clock=progress,
            rank=rank,
            whole_node=samples_node,
            folders=[tempfile.gettempdir()],
        ):
            result = trainer.Trainer(job, workers, channel).fit()
        if workers.is_chief:
            ray.get(settings["channel"].finish.remote(result))
    finally:
        channel.end()
