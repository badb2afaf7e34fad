"""Starts the loop: in this process, or on Ray Train with one worker per accelerator."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import ray.train

from pharmclf import storage
from pharmclf.activations.shards import ActivationsLost, ActivationsNotKept
from pharmclf.config import ConfigError
from pharmclf.model.device import prepare_device
from pharmclf.quiet import native_chatter_muted
from pharmclf.training.job import Observer, TrainingDiverged, TrainingJob

_POLL_S = 0.5
_QUIET = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the default of a later Ray; silences its notice
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # the end of the workers is noticed sooner
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}


_TOLD = (ConfigError, TrainingDiverged, ActivationsLost, ActivationsNotKept)  # errors of a worker that a caller knows


class TrainingFailed(RuntimeError):
    """The workers failed, and not through bad input."""


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names, as in a submitted job, or start Ray on this machine."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        return
    # Ray refuses what the submission has set already, and would print both sides, secrets included
    submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env") or {}
    variables = {name: os.environ[name] for name in _QUIET} | storage.environment()
    variables = {name: value for name, value in variables.items() if name not in submitted.get("env_vars", {})}
    local = {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False, "num_cpus": os.cpu_count()}
    ray.init(
        logging_level=logging.ERROR,
        log_to_driver=False,
        configure_logging=False,
        runtime_env={"env_vars": variables},
        **local,
    )


@dataclass(frozen=True)
class Resources:
    """What each worker reserves, and what it leaves to its pipeline."""

    cpus: float
    gpus: float
    stream_cpus: float


def divide_resources(low: int, high: int, total_cpus: float, total_gpus: float) -> Resources:
    """Divide a cluster among workers so that Ray Data can always decode; pure.

    A worker reserves one CPU where there are plenty and a fraction where there are not: half of the CPUs stay free.

    Args:
        low: fewest workers, which must find their place now.
        high: most workers.
        total_cpus: CPUs of the cluster.
        total_gpus: GPUs of the cluster; where there are some, a worker drives one.

    Raises:
        ConfigError: more workers than GPUs on a cluster that has some, or no CPU left.
    """
    if 0 < total_gpus < low:
        raise ConfigError(
            f"workers: received {low}, but the cluster has {total_gpus:g} GPUs and a worker drives one. "
            f"Give --workers {int(total_gpus)} or fewer, or add nodes"
        )
    cpus = min(1.0, total_cpus / 2 / high)
    cpus = cpus if cpus == 1.0 else int(cpus * 100) / 100
    left = total_cpus - cpus * high
    if cpus <= 0 or left < 1:
        raise ConfigError(
            f"workers: received {high}, but the cluster has {total_cpus:g} CPUs, and reading the images needs one. "
            "Give fewer --workers, or add nodes"
        )
    return Resources(cpus, 1.0 if total_gpus else 0.0, max(1.0, left / high))


def launch(job: TrainingJob, observer: Observer, *, share: float = 1.0) -> dict[str, Any]:
    """Train, and return what `loop.train` returns.

    Args:
        job: what is trained.
        observer: watches it.
        share: of the cluster that it may use, 0..1; the rest is for others that train at the same time.

    Raises:
        ConfigError: bad input that only the workers could see.
        TrainingDiverged: the loss became infinite or not a number.
        StorageUnavailable: data or checkpoints could not be read or written for too long.
        ActivationsLost, ActivationsNotKept: kept activations cannot be read.
        TrainingFailed: the workers died or raised something else.
    """
    low, high = job.config.worker_range
    connect()
    if high == 0:
        return _train_here(with_stream_cpus(job, share), observer)
    total = ray.cluster_resources()
    resources = divide_resources(low, high, share * total.get("CPU", 0.0), share * total.get("GPU", 0.0))
    return _train_on_ray(dataclasses.replace(job, stream_cpus=resources.stream_cpus), observer, resources)


def with_stream_cpus(job: TrainingJob, share: float = 1.0) -> TrainingJob:
    """The job of a run in this process: one CPU is its own, the rest of its share of the cluster decodes."""
    return dataclasses.replace(job, stream_cpus=max(1.0, share * ray.cluster_resources().get("CPU", 0.0) - 1))


def _train_here(job: TrainingJob, observer: Observer) -> dict[str, Any]:
    with native_chatter_muted():
        from pharmclf.training import distributed, loop

        prepare_device(deterministic=job.config.deterministic)
    return loop.train(job, distributed.alone(), observer) | {"workers": 0}


def _train_on_ray(job: TrainingJob, observer: Observer, resources: Resources) -> dict[str, Any]:
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    with native_chatter_muted():
        from ray.train.tensorflow import TensorflowTrainer

    low, high = job.config.worker_range
    relay = ray.remote(num_cpus=0)(Relay).remote()
    own = tempfile.mkdtemp(prefix="pharmclf-ray-train-")  # Ray's own notes; checkpoints are ours
    trainer = TensorflowTrainer(
        _worker,
        train_loop_config={"job": job, "relay": relay},
        scaling_config=ScalingConfig(
            num_workers=low if low == high else (low, high),
            use_gpu=resources.gpus > 0,
            resources_per_worker={"CPU": resources.cpus} | ({"GPU": resources.gpus} if resources.gpus else {}),
        ),
        # a name of its own each time: Ray resumes the same name silently, and what to resume is ours to decide
        run_config=RunConfig(
            name=uuid.uuid4().hex[:12],
            storage_path=own,
            failure_config=FailureConfig(max_failures=job.config.failures),
        ),
    )
    try:
        in_thread(trainer.fit, lambda: _pass_on(relay, observer))
    except Exception as error:
        raise _reason(error) from error
    finally:
        shutil.rmtree(own, ignore_errors=True)
    result = ray.get(relay.result.remote())
    if result is None:
        raise TrainingFailed("the workers ended without a result")
    return result


def in_thread(work: Callable[[], Any], meanwhile: Callable[[], None]) -> None:
    """Run work in a thread, so that this one is free for signals, and do something else every half second."""
    failure: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="in-thread", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_S)
        meanwhile()
    if failure:
        raise failure[0]


def _reason(error: BaseException) -> BaseException:
    """What to tell the user: an error that a worker raised for them, or the last line of what went wrong."""
    own: list[BaseException] = []
    for failure in getattr(error, "worker_failures", {}).values():
        own.append(getattr(failure, "_base_exc", failure))
    for cause in own:
        if isinstance(cause, (*_TOLD, storage.StorageUnavailable)):
            return cause
    cause = own[0] if own else error
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    return TrainingFailed(f"{type(cause).__name__}: {lines[0]}")


def _pass_on(relay: Any, observer: Observer) -> None:
    for kind, values in ray.get(relay.drain.remote()):
        observer.event(kind, **values)
    if observer.stop_requested():
        ray.get(relay.request_stop.remote())


class Relay:
    """An actor between the chief and the driver: events one way, the wish to stop the other."""

    def __init__(self) -> None:
        self._events: list[tuple[str, dict[str, Any]]] = []
        self._stop = False
        self._result: dict[str, Any] | None = None

    def put(self, kind: str, values: dict[str, Any]) -> None:
        """Keep an event for the driver."""
        self._events.append((kind, values))

    def drain(self) -> list[tuple[str, dict[str, Any]]]:
        """The events since the last call."""
        events, self._events = self._events, []
        return events

    def request_stop(self) -> None:
        """Ask the run to end with a checkpoint."""
        self._stop = True

    def stop_requested(self) -> bool:
        """Whether it was asked to."""
        return self._stop

    def finish(self, result: dict[str, Any]) -> None:
        """Keep the result of the chief."""
        self._result = result

    def result(self) -> dict[str, Any] | None:
        """The result of the chief, None before there is one."""
        return self._result


class _RelayObserver:
    """The chief's side of the relay; the wish to stop is asked for in the background, never by a step."""

    def __init__(self, relay: Any) -> None:
        self._relay = relay
        self._stop = False
        threading.Thread(target=self._watch, name="stop-watch", daemon=True).start()

    def _watch(self) -> None:
        waiting = threading.Event()
        while not self._stop:
            self._stop = ray.get(self._relay.stop_requested.remote())
            waiting.wait(_POLL_S)

    def event(self, kind: str, **values: Any) -> None:
        self._relay.put.remote(kind, values)

    def stop_requested(self) -> bool:
        return self._stop


def _worker(settings: dict[str, Any]) -> None:
    """The loop on one Ray Train worker. (all ranks)"""
    from pharmclf.training import distributed, loop

    job: TrainingJob = settings["job"]
    world = ray.train.get_context().get_local_world_size()
    threads = max(1, (os.cpu_count() or 1) // world) if world > 1 else None
    prepare_device(deterministic=job.config.deterministic)
    workers = distributed.join(threads)
    result = loop.train(job, workers, _RelayObserver(settings["relay"]))
    if workers.is_chief:
        ray.get(settings["relay"].finish.remote(result))
