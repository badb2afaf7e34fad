"""One start of the workers on Ray Train, watched from the driver: their events, the wish to stop, a hung step."""

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
from pharmclf.core.events import Note, RunCallback, WorkersStarted
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.distributed.cluster import node_address
from pharmclf.distributed.scaling_policy import WorkerGroupSpec
from pharmclf.distributed.worker_channel import DriverChannel, WorkerChannel
from pharmclf.feature_cache.shards import FeatureCacheCorruptedError, FeatureCacheUnavailableError
from pharmclf.models.devices import configure_devices_for
from pharmclf.monitoring import sampling
from pharmclf.monitoring.cores import usable_cores
from pharmclf.training.context import DeviceOutOfMemoryError, TrainingContext, TrainingDivergedError
from pharmclf.training.loop_progress import LoopPosition, LoopProgress

_START_TIMEOUT_S = 600.0  # for the first batch of an attempt
_STACK_DUMP_TIMEOUT_S = 15.0  # for the stack dumps of all workers, before they are killed
# errors of a worker that a caller knows
_USER_ERRORS = (
    ConfigError,
    TrainingDivergedError,
    DeviceOutOfMemoryError,
    FeatureCacheCorruptedError,
    FeatureCacheUnavailableError,
    storage.StorageUnavailableError,
)


class WorkerGroupError(RunError):
    """The workers failed, and not through bad input; another attempt may fare better."""


class ResourcesUnavailableError(RunError):
    """Others hold the resources that the workers asked for."""


class WorkerGroupRun:
    """One start of the workers, from the newest checkpoint to their end."""

    def __init__(
        self, job: TrainingContext, team: WorkerGroupSpec, observer: RunCallback, number: int, avoided: Sequence[str]
    ) -> None:
        """Nothing is started yet.

        Args:
            job: what is trained.
            team: the workers.
            observer: watches the run.
            number: of the attempt, from 1.
            avoided: ids of nodes that Ray takes for living and that do not answer.
        """
        self.job, self.team, self.number = job, team, number
        self.nodes: dict[int, tuple[str, str]] = {}
        """Id and address of each worker's node, by rank; complete when all have started."""
        self.place: LoopPosition | None = None
        """Where the loop was last seen."""
        self.hung = ""
        """What is known of a hung step; "" where there was none."""
        self.restart = ""
        """Why the workers were asked to end with a checkpoint and start again; "" where they were not."""
        self._observer, self._avoided = observer, avoided
        self._relay: Any = None
        self._ordered: set[str] = set()
        self._dumps_until = 0.0

    def run(self, look: Callable[[], str]) -> dict[str, Any]:
        """Train until the end, a stop, or a failure -> what `trainer.train` returns.

        Args:
            look: asked every half second why the workers shall start again; "": they shall not.

        Raises:
            ConfigError, TrainingDivergedError, DeviceOutOfMemoryError, FeatureCacheCorruptedError,
            FeatureCacheUnavailableError,
            StorageUnavailableError:
                as a worker raised them.
            ResourcesUnavailableError: the workers did not find their places.
            WorkerGroupError: they died or raised something else.
        """
        node = ray.get_runtime_context().get_node_id()
        here = NodeAffinitySchedulingStrategy(node, soft=False)
        self._relay = ray.remote(num_cpus=0)(DriverChannel).options(scheduling_strategy=here).remote()
        own = tempfile.mkdtemp(prefix="pharmclf-ray-train-")  # Ray's own notes; checkpoints are ours
        job = dataclasses.replace(self.job, loader_cpus=self.team.each.loader_cpus)
        settings = {"job": job, "relay": self._relay, "number": self.number, "driver_node": node}
        # GPUs of one node exchange gradients faster; without GPUs a node's cores are what a worker needs
        placement = "PACK" if self.team.each.gpus else "SPREAD"
        trainer = build_trainer(_worker, settings, self.team, own, placement=placement, avoided=self._avoided)
        try:
            run_in_thread(trainer.fit, lambda: self._monitor_loop(look))
        except Exception as error:
            raise self._to_user_error(error) from error
        finally:
            self._forward_events()
            shutil.rmtree(own, ignore_errors=True)
        result: dict[str, Any] | None = ray.get(self._relay.result.remote())
        if result is None:
            raise WorkerGroupError("the workers ended without a result")
        return result

    def _monitor_loop(self, look: Callable[[], str]) -> None:
        """Every half second, in the driver's main thread."""
        silent = self._forward_events()
        if self._observer.should_stop():
            self._request_stop("stop")
        elif not self.restart and self.nodes and (reason := look()):
            self.restart = reason
            self._observer.on_event(Note(text=f"{reason}: a checkpoint is written, and the workers start again"))
            self._request_stop("stop")
        limit = self.job.config.hang_after_s
        if limit and self.place is None:  # TensorFlow, the model and its weights come first
            limit = max(limit, _START_TIMEOUT_S)
        if 0 < limit <= silent and not self.hung:
            self.hung = f"no step for {silent:.0f} s"
            self._request_stop("dump")
            self._dumps_until = time.monotonic() + _STACK_DUMP_TIMEOUT_S
        if self._dumps_until and time.monotonic() > self._dumps_until:
            self._dumps_until = 0.0
            self._kill_hung_workers()

    def _forward_events(self) -> float:
        """Pass the events of the workers on -> seconds since the loop has last come to a batch."""
        events, about = ray.get(self._relay.poll_events.remote())
        for event in events:
            self._observer.on_event(event)
        self.place = about["place"] or self.place
        if not self.nodes and len(about["nodes"]) == self.team.size:
            self.nodes = about["nodes"]
            addresses = tuple(sorted({address for _, address in self.nodes.values()}))
            self._observer.on_event(WorkersStarted(workers=self.team.size, nodes=addresses, attempt=self.number))
        return float(about["silent_s"])

    def _request_stop(self, what: str) -> None:
        if what not in self._ordered:
            self._ordered.add(what)
            ray.get(self._relay.send_command.remote(what))

    def _kill_hung_workers(self) -> None:
        """Kill the workers of a hung step, those that answer and those that do not."""
        dumped, handles = ray.get(self._relay.get_stack_dumps.remote())
        names = ", ".join(
            f"rank {rank} on {address}" for rank, (_, address) in self.nodes.items() if rank not in dumped
        )
        folder = storage.join(self.job.folder, "stacks")
        self.hung += f"; stacks of {len(dumped)} workers are in {folder}" if dumped else ""
        self.hung += f"; no answer from {names}" if names else ""
        for handle in handles:
            ray.kill(handle)

    def _to_user_error(self, error: BaseException) -> BaseException:
        """What to tell the caller: an error that a worker raised for them, or the last line of what went wrong."""
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
    team: WorkerGroupSpec,
    folder: str,
    *,
    placement: str,
    avoided: Sequence[str] = (),
) -> Any:
    """A TensorflowTrainer that starts its workers once: neither a failure nor a lack of room is tried again.

    Args:
        function: what each worker calls with the settings.
        settings: for it.
        team: the workers.
        folder: for Ray's own notes.
        placement: Ray's strategy, PACK or SPREAD.
        avoided: ids of nodes that are not used.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    with suppress_native_stderr():
        from ray.train.tensorflow import TensorflowTrainer

    each = team.each
    return TensorflowTrainer(
        function,
        train_loop_config=settings,
        scaling_config=ScalingConfig(
            num_workers=team.size,
            use_gpu=each.gpus > 0,
            resources_per_worker={"CPU": each.cpus} | ({"GPU": each.gpus} if each.gpus else {}),
            placement_strategy=placement,
            label_selector={"ray.io/node-id": f"!in({','.join(avoided)})"} if avoided else None,
        ),
        # a name of its own each time: Ray resumes the same name silently, and what to resume is ours to decide
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
    pulse = LoopProgress()
    lifeline = WorkerChannel(settings["relay"], rank, pulse, job.folder, settings["number"])
    try:
        from pharmclf.training import collectives, trainer

        configure_devices_for(job.config)
        threads = max(1, usable_cores() // world) if world > 1 else None
        workers = dataclasses.replace(collectives.init_distributed(threads), progress=pulse)
        # one process of each node reads it; the driver reads its own
        reads = context.get_local_rank() == 0 and ray.get_runtime_context().get_node_id() != settings["driver_node"]
        with sampling(
            lifeline.on_event,
            node=node_address(),
            every_s=job.hardware_every_s,
            clock=pulse,
            rank=rank,
            whole_node=reads,
            folders=[tempfile.gettempdir()],
        ):
            result = trainer.train(job, workers, lifeline)
        if workers.is_chief:
            ray.get(settings["relay"].finish.remote(result))
    finally:
        lifeline.end()
