"""Starts the loop: in this process, or on Ray Train with one worker per accelerator, again after failures."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import time
from typing import Any

import ray

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.core.compat.ray import (
    draining_nodes,
    local_cluster_address,
    mute_token_notice,
    preserve_signal_handlers,
    submitted_runtime_env,
)
from pharmclf.core.errors import ConfigError, RunError
from pharmclf.core.signals import StopRequested
from pharmclf.core.stderr_filter import native_chatter_muted
from pharmclf.data.image_decoding import MAX_PIXELS_VARIABLE
from pharmclf.models.devices import MEMORY_VARIABLE, configure_devices_for
from pharmclf.monitoring import sampling
from pharmclf.monitoring.cores import ray_cpus
from pharmclf.training.access import refuse_open_cluster
from pharmclf.training.attempt import SETTINGS, Attempt, NoRoom, WorkersFailed
from pharmclf.training.context import Callback, TrainingContext
from pharmclf.training.division import Team, room_text
from pharmclf.training.nodes import (
    NodesMissing,
    free_places,
    node_address,
    nodes_asked_for,
    survey,
    usable_nodes,
    wait_for_team,
)
from pharmclf.training.proxy import reach_directly
from pharmclf.training.ray_address import FIND_LOCAL, VARIABLE, check_address, given_address, no_cluster_found
from pharmclf.training.recovery import Failure, Recovery, place_text

_QUIET = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the default of a later Ray; silences its notice
    **SETTINGS,
}
_LOOK_EVERY_S = 2.0
_GROW_AFTER_S = 20.0  # that new room must last before a run grows into it

_local = False
"""Whether the Ray that this process uses is its own: no node will join it."""


class TrainingFailed(RunError):
    """The workers failed, and not through bad input."""


def connect(*, allow_open: bool = False) -> None:
    """Join the cluster that RAY_ADDRESS names, as in a submitted job, or start Ray on this machine.

    Args:
        allow_open: join a cluster that takes jobs from anyone who reaches it.

    Raises:
        ConfigError: the cluster is such a one, and may not be joined; or none answers at RAY_ADDRESS.
    """
    global _local
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        return
    # Ray refuses what the submission has set already, and would print both sides, secrets included
    submitted = submitted_runtime_env()
    passed_on = (*_QUIET, MEMORY_VARIABLE, MAX_PIXELS_VARIABLE, "KERAS_BACKEND")
    variables = {name: os.environ[name] for name in passed_on if name in os.environ}
    variables |= storage.environment()
    variables = {name: value for name, value in variables.items() if name not in submitted.get("env_vars", {})}
    address = given_address()
    _local = not address
    local = {"include_dashboard": False, "num_cpus": ray_cpus(), "address": "local"} if _local else {}
    if not _local:
        _check_answer(address)
    reach_directly([node_address()])
    mute_token_notice()
    with preserve_signal_handlers():
        try:
            context = ray.init(
                logging_level=logging.ERROR,
                log_to_driver=False,
                configure_logging=False,
                runtime_env={"env_vars": variables},
                **local,
            )
        except ConnectionError as error:
            if _local:
                raise
            raise ConfigError(
                f"{VARIABLE}: received {address!r}, which answers and cannot be joined: {error}. Give its token "
                f"(RAY_AUTH_MODE=token, ~/.ray/auth_token), or `unset {VARIABLE}` to start Ray on this machine alone"
            ) from error
    if not _local:
        reach_directly(node["NodeManagerAddress"] for node in ray.nodes())
        try:
            refuse_open_cluster(context.address_info, allow_open)
        except BaseException:
            ray.shutdown()
            raise


def _check_answer(address: str) -> None:
    """See whether a cluster answers at RAY_ADDRESS.

    Raises:
        ConfigError: none does.
    """
    found = ""
    if address == FIND_LOCAL:
        try:
            found = local_cluster_address()
        except ConnectionError as error:
            raise no_cluster_found() from error
    check_address(address, resolved=found)


def asking_for_nodes(config: RunConfig) -> contextlib.AbstractContextManager[None]:
    """Within, the autoscaler of the cluster that was joined, where it has one, is asked for nodes for all workers."""
    return nodes_asked_for(config) if config.worker_range[1] and not _local else contextlib.nullcontext()


def launch(job: TrainingContext, observer: Callback, *, share: float = 1.0) -> dict[str, Any]:
    """Train to the end, and return what `trainer.train` returns.

    Args:
        job: what is trained.
        observer: watches it.
        share: of the cluster that it may use, 0..1; the rest is for others that train at the same time.

    Raises:
        ConfigError: bad input that only the workers could see, or more workers than this machine has room for.
        NodesMissing: the cluster had no room for the workers in time.
        TrainingDivergedError: the loss became infinite or not a number.
        DeviceOutOfMemoryError: a device does not hold what it shall compute at once.
        StorageUnavailableError: data or checkpoints could not be read or written for too long.
        FeatureCacheCorruptedError, FeatureCacheUnavailableError: kept activations cannot be read.
        TrainingFailed: the workers failed more often than is allowed, or twice at the same step.
        StopRequested: a stop was requested; a checkpoint has been written.
    """
    connect(allow_open=job.config.allow_open_cluster)
    if job.config.worker_range[1] == 0:
        result = _train_here(with_stream_cpus(job, share), observer)
    else:
        result = _Launch(job, observer, share).run()
    if result["status"] == "stopped":
        raise StopRequested
    return result


def with_stream_cpus(job: TrainingContext, share: float = 1.0) -> TrainingContext:
    """The job of a run in this process: one CPU is its own, the rest of its share of the cluster decodes."""
    return dataclasses.replace(job, stream_cpus=max(1.0, share * ray.cluster_resources().get("CPU", 0.0) - 1))


def _train_here(job: TrainingContext, observer: Callback) -> dict[str, Any]:
    with native_chatter_muted():
        from pharmclf.training import collectives, trainer

        configure_devices_for(job.config)
    workers = collectives.single_worker()
    with sampling(observer.event, node=node_address(), every_s=job.hardware_every_s, clock=workers.progress):
        return trainer.train(job, workers, observer) | {"workers": 0}


def await_team(config: RunConfig, observer: Callback, share: float = 1.0, at_most: int | None = None) -> Team:
    """Wait for the workers of a run -> those that there is room for.

    Args:
        config: of the run.
        observer: is told what is waited for.
        share: of the cluster that it may use, 0..1.
        at_most: workers; None: as many as the run may have.

    Raises:
        ConfigError, NodesMissing, StopRequested: as `wait_for_team`.
    """
    return wait_for_team(
        config,
        share,
        at_most=config.worker_range[1] if at_most is None else at_most,
        patience_s=0.0 if _local else config.wait_for_nodes_s,
        say=lambda text: observer.event("waiting", text=text),
        stop_requested=observer.should_stop,
    )


class _Launch:
    """The attempts of a run, until one ends it."""

    def __init__(self, job: TrainingContext, observer: Callback, share: float) -> None:
        self._job, self._config, self._observer, self._share = job, job.config, observer, share
        self._recovery = Recovery(job.config.failures)
        self._at_most = job.config.worker_range[1]
        self._looked_at = self._room_since = 0.0

    def run(self) -> dict[str, Any]:
        """As `launch`."""
        number, no_room_since = 0, 0.0
        while True:
            team = await_team(self._config, self._observer, self._share, self._at_most)
            number += 1
            silent = [node.id for node in survey()[1]]
            attempt = Attempt(self._job, team, self._observer, number, silent)
            try:
                result = attempt.run(lambda: self._look(attempt))  # noqa: B023 - called within this round
            except NoRoom as error:
                no_room_since = no_room_since or time.monotonic()
                self._await_room(team, no_room_since, error)
                continue
            except WorkersFailed as error:
                no_room_since = 0.0
                self._after(attempt, error)
                continue
            if result["status"] == "stopped" and attempt.restart and not self._observer.should_stop():
                no_room_since, self._at_most = 0.0, self._config.worker_range[1]
                continue
            return result

    def _note(self, text: str) -> None:
        self._observer.event("note", text=text)

    def _look(self, attempt: Attempt) -> str:
        """Why the workers shall start again, with a checkpoint: a node is about to go, or there is room for more."""
        now = time.monotonic()
        if now - self._looked_at < _LOOK_EVERY_S:
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
        places = free_places(wanted, attempt.team, {node for node, _ in attempt.nodes.values()})
        if not places:
            self._room_since = 0.0
            return ""
        self._room_since = self._room_since or now
        if now - self._room_since < _GROW_AFTER_S:
            return ""
        self._room_since = 0.0
        return f"there is room for {places} more workers"

    def _await_room(self, team: Team, since: float, error: NoRoom) -> None:
        """The nodes are there, and others hold what the workers need.

        Raises:
            NodesMissing: they held it for too long.
        """
        low = self._config.worker_range[0]
        if team.size > low:
            self._at_most = team.size - 1
            return
        patience = self._config.wait_for_nodes_s
        free = ray.available_resources()
        text = (
            f"{team.size} workers of {team.each.cpus:g} CPUs and {team.each.gpus:g} GPUs asked for; there are "
            f"{room_text(usable_nodes())}, and {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs are free"
        )
        if time.monotonic() - since >= patience:
            raise NodesMissing(f"no room within --wait-for-nodes {self._config.wait_for_nodes}: {text}") from error
        self._observer.event("waiting", text=f"waiting for others to leave room: {text}")

    def _after(self, attempt: Attempt, error: WorkersFailed) -> None:
        """Decide whether another attempt follows.

        Raises:
            TrainingFailed: it does not.
        """
        failure = self._failure(attempt, str(error))
        why = self._recovery.give_up(failure)
        names = ("phase", "epoch", "step")
        self._observer.event(
            "failure",
            reason=failure.reason,
            cause=failure.kind,
            place=dict(zip(names, failure.place, strict=True)) if failure.place else None,
            failures=len(self._recovery.failures),
            allowed=self._recovery.allowed,
        )
        if why:
            raise TrainingFailed(why) from error
        self._note(
            f"warning: {failure.reason} ({place_text(failure.place)}); the run goes on from its newest checkpoint "
            f"(failure {len(self._recovery.failures)} of {self._recovery.allowed})"
        )
        self._at_most = self._config.worker_range[1]

    def _failure(self, attempt: Attempt, reason: str) -> Failure:
        """What has happened to an attempt."""
        if attempt.hung:
            return Failure("hang", reason, attempt.place)
        gone = {node for node, _ in attempt.nodes.values()} - {node.id for node in usable_nodes()}
        if gone:
            addresses = sorted({address for node, address in attempt.nodes.values() if node in gone})
            return Failure("node", f"lost node {', '.join(addresses)}", attempt.place)
        return Failure("crash", reason, attempt.place)
