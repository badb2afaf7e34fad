"""Starts the loop: in this process, or on Ray Train with one worker per accelerator, again after failures."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import ray

from pharmclf.core.compat.ray import (
    draining_nodes,
)
from pharmclf.core.errors import RunError
from pharmclf.core.events import Note, RunCallback, Waiting, WorkerFailure
from pharmclf.core.signals import StopRequested
from pharmclf.core.stderr_filter import suppress_native_stderr
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

_POLL_INTERVAL_S = 2.0
_SCALE_UP_DELAY_S = 20.0  # that new room must last before a run grows into it


class TrainingFailedError(RunError):
    """The workers failed, and not through bad input."""


def train_on_workers(job: TrainingContext, observer: RunCallback, *, share: float = 1.0) -> dict[str, Any]:
    """Train to the end, and return what `trainer.train` returns.

    Args:
        job: what is trained.
        observer: watches it.
        share: of the cluster that it may use, 0..1; the rest is for others that train at the same time.

    Raises:
        ConfigError: bad input that only the workers could see, or more workers than this machine has room for.
        NodesUnavailableError: the cluster had no room for the workers in time.
        TrainingDivergedError: the loss became infinite or not a number.
        DeviceOutOfMemoryError: a device does not hold what it shall compute at once.
        StorageUnavailableError: data or checkpoints could not be read or written for too long.
        FeatureCacheCorruptedError, FeatureCacheUnavailableError: kept activations cannot be read.
        TrainingFailedError: the workers failed more often than is allowed, or twice at the same step.
        StopRequested: a stop was requested; a checkpoint has been written.
    """
    connect(allow_open=job.config.allow_open_cluster)
    if job.config.worker_range[1] == 0:
        result = _train_here(with_loader_cpus(job, share), observer)
    else:
        result = TrainController(job, observer, share).run()
    if result["status"] == "stopped":
        raise StopRequested
    return result


def with_loader_cpus(job: TrainingContext, share: float = 1.0) -> TrainingContext:
    """The job of a run in this process: one CPU is its own, the rest of its share of the cluster decodes."""
    return dataclasses.replace(job, loader_cpus=max(1.0, share * ray.cluster_resources().get("CPU", 0.0) - 1))


def _train_here(job: TrainingContext, observer: RunCallback) -> dict[str, Any]:
    with suppress_native_stderr():
        from pharmclf.training import collectives, trainer

        configure_devices_for(job.config)
    workers = collectives.single_worker()
    with sampling(observer.on_event, node=node_address(), every_s=job.hardware_every_s, clock=workers.progress):
        return trainer.train(job, workers, observer) | {"workers": 0}


class TrainController:
    """The attempts of a run, until one ends it."""

    def __init__(self, job: TrainingContext, observer: RunCallback, share: float) -> None:
        self._job, self._config, self._observer, self._share = job, job.config, observer, share
        self._recovery = FailurePolicy(job.config.failures)
        self._at_most = job.config.worker_range[1]
        self._looked_at = self._room_since = 0.0

    def run(self) -> dict[str, Any]:
        """As `train_on_workers`."""
        number, no_room_since = 0, 0.0
        while True:
            team = wait_for_workers(self._config, self._observer, self._share, self._at_most)
            number += 1
            silent = [node.id for node in partition_reachable()[1]]
            attempt = WorkerGroupRun(self._job, team, self._observer, number, silent)
            try:
                result = attempt.run(lambda: self._poll(attempt))  # noqa: B023 - called within this round
            except ResourcesUnavailableError as error:
                no_room_since = no_room_since or time.monotonic()
                self._wait_for_resources(team, no_room_since, error)
                continue
            except WorkerGroupError as error:
                no_room_since = 0.0
                self._handle_exit(attempt, error)
                continue
            if result["status"] == "stopped" and attempt.restart and not self._observer.should_stop():
                no_room_since, self._at_most = 0.0, self._config.worker_range[1]
                continue
            return result

    def _note(self, text: str) -> None:
        self._observer.on_event(Note(text=text))

    def _poll(self, attempt: WorkerGroupRun) -> str:
        """Why the workers shall start again, with a checkpoint: a node is about to go, or there is room for more."""
        now = time.monotonic()
        if now - self._looked_at < _POLL_INTERVAL_S:
            return ""
        self._looked_at = now
        leaving = draining_nodes()
        for node, address in attempt.nodes.values():
            if node in leaving:
                return f"node {address} is about to be taken away"
        low, high = self._config.worker_range
        wanted = min(high, self._config.batch_size) - attempt.team.size
        if low == high or wanted <= 0 or self._share < 1.0 or attempt.place is None:
            return ""
        places = count_free_slots(wanted, attempt.team, {node for node, _ in attempt.nodes.values()})
        if not places:
            self._room_since = 0.0
            return ""
        self._room_since = self._room_since or now
        if now - self._room_since < _SCALE_UP_DELAY_S:
            return ""
        self._room_since = 0.0
        return f"there is room for {places} more workers"

    def _wait_for_resources(self, team: WorkerGroupSpec, since: float, error: ResourcesUnavailableError) -> None:
        """The nodes are there, and others hold what the workers need.

        Raises:
            NodesUnavailableError: they held it for too long.
        """
        low = self._config.worker_range[0]
        if team.size > low:
            self._at_most = team.size - 1
            return
        patience = self._config.wait_for_nodes_s
        free = ray.available_resources()
        text = (
            f"{team.size} workers of {team.each.cpus:g} CPUs and {team.each.gpus:g} GPUs asked for; there are "
            f"{format_capacity(usable_nodes())}, and {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs are "
            "free"
        )
        if time.monotonic() - since >= patience:
            raise NodesUnavailableError(
                f"no room within --wait-for-nodes {self._config.wait_for_nodes}: {text}"
            ) from error
        self._observer.on_event(Waiting(text=f"waiting for others to leave room: {text}"))

    def _handle_exit(self, attempt: WorkerGroupRun, error: WorkerGroupError) -> None:
        """Decide whether another attempt follows.

        Raises:
            TrainingFailedError: it does not.
        """
        failure = self._failure(attempt, str(error))
        why = self._recovery.decide(failure)
        self._observer.on_event(
            WorkerFailure(
                kind=failure.kind,
                reason=failure.reason,
                position=failure.place,
                num_failures=len(self._recovery.failures),
                max_failures=self._recovery.allowed,
            )
        )
        if why:
            raise TrainingFailedError(why) from error
        self._note(
            f"warning: {failure.reason} ({format_position(failure.place)}); the run goes on from its newest checkpoint "
            f"(failure {len(self._recovery.failures)} of {self._recovery.allowed})"
        )
        self._at_most = self._config.worker_range[1]

    def _failure(self, attempt: WorkerGroupRun, reason: str) -> Failure:
        """What has happened to an attempt."""
        if attempt.hung:
            return Failure("hang", reason, attempt.place)
        gone = {node for node, _ in attempt.nodes.values()} - {node.id for node in usable_nodes()}
        if gone:
            addresses = sorted({address for node, address in attempt.nodes.values() if node in gone})
            return Failure("node", f"lost node {', '.join(addresses)}", attempt.place)
        return Failure("crash", reason, attempt.place)
