"""Trains in this process, or on Ray Train with one worker for each accelerator; restarts workers after failures."""

from __future__ import annotations

import dataclasses
import sys
import time

import ray

from pharmclf.config import RunConfig
from pharmclf.core.background import start_in_thread
from pharmclf.core.compat.ray import draining_nodes
from pharmclf.core.console import show_activity
from pharmclf.core.errors import RunError
from pharmclf.core.events import ActivityStarted, Note, RunCallback, Waiting, WorkerFailure
from pharmclf.core.signals import StopRequested
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.core.usual_times import IMPORT_TENSORFLOW_S
from pharmclf.distributed.cluster import (
    NodesUnavailableError,
    connect,
    count_free_slots,
    node_address,
    partition_reachable,
    usable_nodes,
    wait_for_workers,
)
from pharmclf.distributed.failure_policy import Failure, FailurePolicy, format_position
from pharmclf.distributed.scaling_policy import WorkerGroupSpec, format_capacity
from pharmclf.distributed.worker_group import ResourcesUnavailableError, WorkerGroupError, WorkerGroupRun
from pharmclf.models.devices import configure_devices_for
from pharmclf.monitoring import sampling
from pharmclf.training.context import TrainingContext
from pharmclf.training.train_state import TrainResult, TrainStatus

_POLL_INTERVAL_S = 2.0
_SCALE_UP_DELAY_S = 20.0  # that free resources must last before a run grows


class TrainingFailedError(RunError):
    """The workers failed, and not through bad input."""


def train_on_workers(job: TrainingContext, callback: RunCallback, *, share: float = 1.0) -> TrainResult:
    """Train to the end, with restarts -> as `Trainer.fit`.

    Args:
        share: of the cluster that it may use, 0..1; other runs use the rest.

    Raises:
        ConfigError: bad input that only the workers could see, or more workers than this machine has room for.
        NodesUnavailableError: the cluster had no room for the workers in time.
        TrainingDivergedError: the loss became infinite or not a number.
        DeviceOutOfMemoryError: a micro-batch does not fit on a device.
        StorageUnavailableError: data or checkpoints could not be read or written for too long.
        FeatureCacheCorruptedError, FeatureCacheUnavailableError: cached features cannot be read.
        TrainingFailedError: the workers failed more often than is allowed, or twice at the same step.
        StopRequested: a stop was requested; a checkpoint has been written.
    """
    connect(allow_open=job.config.allow_unauthenticated_cluster)
    if job.config.worker_range[1] == 0:
        result = _train_here(with_loader_cpus(job, share), callback)
    else:
        result = TrainController(job, callback, share).run()
    if result.status is TrainStatus.STOPPED:
        raise StopRequested
    return result


def with_loader_cpus(job: TrainingContext, share: float = 1.0) -> TrainingContext:
    """Give the loader of a run in this process all CPUs of its share of the cluster but one."""
    return dataclasses.replace(job, loader_cpus=max(1.0, share * ray.cluster_resources().get("CPU", 0.0) - 1))


def _train_here(job: TrainingContext, callback: RunCallback) -> TrainResult:
    if "tensorflow" not in sys.modules:
        callback.on_event(ActivityStarted(text="importing TensorFlow", usual_s=IMPORT_TENSORFLOW_S))
    with suppress_native_stderr():
        from pharmclf.training import collectives, trainer

        configure_devices_for(job.config)
    workers = collectives.single_worker()
    with sampling(callback.on_event, node=node_address(), every_s=job.monitor_interval_s, clock=workers.progress):
        return dataclasses.replace(trainer.Trainer(job, workers, callback).fit(), workers=0)


def connect_for_training(config: RunConfig) -> None:
    """As `connect`; where this process trains, it imports TensorFlow at the same time, since most of either is a wait.

    Raises:
        ConfigError: as `connect`.
    """
    if config.worker_range[1] > 0 or "tensorflow" in sys.modules:
        connect(allow_open=config.allow_unauthenticated_cluster)
        return
    with suppress_native_stderr():
        importing = start_in_thread(_import_trainer, "import")
        try:
            connect(allow_open=config.allow_unauthenticated_cluster)
        finally:  # a process that ends in the middle of this import may crash
            with show_activity("importing TensorFlow"):
                importing.result()


def _import_trainer() -> None:
    import pharmclf.training.trainer  # noqa: F401


class TrainController:
    """Starts worker groups until the run ends; the policies decide whether and with how many workers."""

    def __init__(self, job: TrainingContext, callback: RunCallback, share: float) -> None:
        self._job, self._config, self._callback, self._share = job, job.config, callback, share
        self._failure_policy = FailurePolicy(job.config.max_failures)
        self._max_workers = job.config.worker_range[1]
        self._polled_at = self._free_since = 0.0

    def run(self) -> TrainResult:
        """As `train_on_workers`."""
        number, unavailable_since = 0, 0.0
        while True:
            group = wait_for_workers(self._config, self._callback, self._share, self._max_workers)
            number += 1
            unreachable = [node.id for node in partition_reachable()[1]]
            attempt = WorkerGroupRun(self._job, group, self._callback, number, unreachable)
            try:
                result = attempt.run(lambda: self._poll(attempt))  # noqa: B023 - called within this round
            except ResourcesUnavailableError as error:
                unavailable_since = unavailable_since or time.monotonic()
                self._wait_for_resources(group, unavailable_since, error)
                continue
            except WorkerGroupError as error:
                unavailable_since = 0.0
                self._handle_exit(attempt, error)
                continue
            if result.status is TrainStatus.STOPPED and attempt.restart and not self._callback.should_stop():
                unavailable_since, self._max_workers = 0.0, self._config.worker_range[1]
                continue
            return result

    def _poll(self, attempt: WorkerGroupRun) -> str:
        """Reason to restart the workers from a checkpoint: a node drains, or more workers fit; "": there is none."""
        now = time.monotonic()
        if now - self._polled_at < _POLL_INTERVAL_S:
            return ""
        self._polled_at = now
        draining = draining_nodes()
        for node, address in attempt.nodes.values():
            if node in draining:
                return f"node {address} is being drained"
        low, high = self._config.worker_range
        missing = min(high, self._config.batch_size) - attempt.group.size
        if low == high or missing <= 0 or self._share < 1.0 or attempt.position is None:
            return ""
        slots = count_free_slots(missing, attempt.group, {node for node, _ in attempt.nodes.values()})
        if not slots:
            self._free_since = 0.0
            return ""
        self._free_since = self._free_since or now
        if now - self._free_since < _SCALE_UP_DELAY_S:
            return ""
        self._free_since = 0.0
        return f"{slots} more workers fit"

    def _wait_for_resources(self, group: WorkerGroupSpec, since: float, error: ResourcesUnavailableError) -> None:
        """Wait for resources that others hold, or try with one worker less.

        Raises:
            NodesUnavailableError: they were held until the timeout.
        """
        low = self._config.worker_range[0]
        if group.size > low:
            self._max_workers = group.size - 1
            return
        timeout_s = self._config.node_timeout_s
        free = ray.available_resources()
        text = (
            f"{group.size} workers of {group.each.cpus:g} CPUs and {group.each.gpus:g} GPUs requested; available are "
            f"{format_capacity(usable_nodes())}, free {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs"
        )
        if time.monotonic() - since >= timeout_s:
            raise NodesUnavailableError(f"no room within --node-timeout {self._config.node_timeout}: {text}") from error
        self._callback.on_event(Waiting(text=f"waiting for resources that others hold: {text}"))

    def _handle_exit(self, attempt: WorkerGroupRun, error: WorkerGroupError) -> None:
        """Let the failure policy decide whether another attempt follows.

        Raises:
            TrainingFailedError: none follows.
        """
        policy, failure = self._failure_policy, self._failure(attempt, str(error))
        reason = policy.decide(failure)
        self._callback.on_event(
            WorkerFailure(
                kind=failure.kind,
                reason=failure.reason,
                position=failure.position,
                num_failures=len(policy.failures),
                max_failures=policy.max_failures,
            )
        )
        if reason:
            raise TrainingFailedError(reason) from error
        self._callback.on_event(
            Note(
                text=f"warning: {failure.reason} ({format_position(failure.position)}); the run resumes from its "
                f"newest checkpoint (failure {len(policy.failures)} of {policy.max_failures})"
            )
        )
        self._max_workers = self._config.worker_range[1]

    def _failure(self, attempt: WorkerGroupRun, reason: str) -> Failure:
        """Classify the failure of an attempt."""
        if attempt.hung:
            return Failure("hang", reason, attempt.position)
        lost = {node for node, _ in attempt.nodes.values()} - {node.id for node in usable_nodes()}
        if lost:
            addresses = sorted({address for node, address in attempt.nodes.values() if node in lost})
            return Failure("node", f"lost node {', '.join(addresses)}", attempt.position)
        return Failure("crash", reason, attempt.position)
