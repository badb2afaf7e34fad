"""Sends snapshots of runs and sweeps from their drivers to TensorBoard and MLflow, in the background."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, TypeVar

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.core.background import BackgroundTask
from pharmclf.core.console import Say
from pharmclf.core.events import EpochEnd, EpochRecord, Event
from pharmclf.core.timeouts import OPTIONAL_STORAGE_S
from pharmclf.reporting.trial_info import TrialInfo
from pharmclf.runs.record import RunRecord, flatten
from pharmclf.tracking import tensorboard
from pharmclf.tracking.mlflow_client import check_mlflow
from pharmclf.tracking.mlflow_logger import EXPERIMENT, MlflowRunLogger, MlflowSweepLogger
from pharmclf.tracking.snapshots import (
    BEST,
    EpochSnapshot,
    RunSnapshot,
    SweepSnapshot,
    TrialSnapshot,
    metrics_by_step,
    run_tags,
)
from pharmclf.training.checkpoint import list_checkpoints

_DELIVERY_STORAGE_S = 10.0  # storage timeout of a delivery, which is repeated anyway
_RETRY_S, _ATTEMPTS_AT_CLOSE = 5.0, 3
_CLOSE_S = 60.0  # of all backends together: report and plots are sent last
_log = logging.getLogger(__name__)
S = TypeVar("S")
S_contra = TypeVar("S_contra", contravariant=True)
Lost = Callable[[], object]
"""Whether the lease of the folder is lost; then nothing is sent."""


def check_tracking(config: RunConfig, experiment: str = EXPERIMENT) -> None:
    """Check that a run can be tracked as configured; the MLflow experiment of a sweep has its name.

    Raises:
        ConfigError: the MLflow server cannot be used. Later errors are only logged.
    """
    if config.mlflow:
        check_mlflow(config.mlflow, experiment)


class _Backend(Protocol[S_contra]):
    def deliver(self, snapshot: S_contra, /) -> None: ...


class _Broadcaster(Generic[S]):
    """Keeps the newest snapshot and delivers it to each backend in a thread; failed deliveries are repeated."""

    def __init__(self, snapshot: S, backends: Mapping[str, Callable[[S], _Backend[S]]], lost: Lost) -> None:
        """Start the threads; each backend is connected before its first delivery."""
        self._snapshot, self._lost, self._lock = snapshot, lost, threading.Lock()
        self._senders = {name: self._start_sender(name, connect) for name, connect in backends.items()}

    def _start_sender(self, name: str, connect: Callable[[S], _Backend[S]]) -> BackgroundTask:
        backend: _Backend[S] | None = None

        def send() -> None:
            nonlocal backend
            with self._lock:
                snapshot = self._snapshot
            if not self._lost():  # otherwise another driver sends it
                with storage.timeout(_DELIVERY_STORAGE_S):
                    backend = backend or connect(snapshot)
                    backend.deliver(snapshot)

        sender = BackgroundTask(
            f"tracking-{name}",
            send,
            attempts_at_close=_ATTEMPTS_AT_CLOSE,
            retry_s=_RETRY_S,
            failure=f"{name} cannot be updated",
        )
        sender.notify()
        return sender

    def update(self, change: Callable[[S], S]) -> None:
        with self._lock:
            self._snapshot = change(self._snapshot)
        for sender in self._senders.values():
            sender.notify()

    def close(self) -> None:
        """Deliver the last snapshot; wait at most `_CLOSE_S` for all backends."""
        deadline = time.monotonic() + _CLOSE_S
        for sender in self._senders.values():
            sender.request_close()
        for name, sender in self._senders.items():
            if not sender.close(max(0.0, deadline - time.monotonic())):
                _log.warning("%s: no answer for %.0f s; the end of the run may be missing there", name, _CLOSE_S)
            elif sender.failed:
                _log.warning("%s: the end of the run could not be sent; it is in the run folder", name)


class Tracker:
    """Tracks a run; events neither wait for a backend nor fail."""

    def __init__(self, config: RunConfig, folder: str, record: RunRecord, lost: Lost, say: Say) -> None:
        """Start, or continue the tracking of a resumed run; `say` gets its URL on the MLflow server."""
        self._config = config
        snapshot = RunSnapshot(
            name=record.name,
            folder=folder,
            config=config,
            settings=flatten(record.settings),
            tags=run_tags(folder, record.fingerprints, record.versions),
            epochs=_previous_epochs(config, folder),
        )
        backends: dict[str, Callable[[RunSnapshot], _Backend[RunSnapshot]]] = {}
        if config.tensorboard and tensorboard.is_installed():
            backends["TensorBoard"] = tensorboard.TensorBoardLogger
        if config.mlflow:
            backends[f"MLflow at {config.mlflow}"] = functools.partial(MlflowRunLogger, config.mlflow, say)
        self._broadcaster = _Broadcaster(snapshot, backends, lost)

    def on_event(self, event: Event, /) -> None:
        """As `Callback.on_event`."""
        if isinstance(event, EpochEnd):
            self._broadcaster.update(lambda snapshot: self._with_epoch(snapshot, event.record))

    def _with_epoch(self, snapshot: RunSnapshot, record: EpochRecord) -> RunSnapshot:
        best = snapshot.epochs[-1].numbers.get(BEST, 0.0) if snapshot.epochs else 0.0
        (epoch,) = metrics_by_step(self._config, [record], best=best)
        if epoch.at in {known.at for known in snapshot.epochs}:  # repeated after a failure, with the same numbers
            return snapshot
        return dataclasses.replace(snapshot, epochs=(*snapshot.epochs, epoch))

    def close(self, state: str) -> None:
        """Send the end of the run: interrupted, failed, or complete with result, report and plots."""
        self._broadcaster.update(lambda snapshot: dataclasses.replace(snapshot, state=state, ended_s=time.time()))
        self._broadcaster.close()


def track_complete(config: RunConfig, folder: str, record: RunRecord, say: Say) -> None:
    """Send a run that is already complete to MLflow; a finished run there is not changed."""
    if config.mlflow:
        Tracker(dataclasses.replace(config, tensorboard=False), folder, record, lambda: None, say).close("complete")


class SweepTracker:
    """Tracks a sweep; its driver neither waits for a backend nor fails.

    A resumed sweep sends its trials again from storage, and each backend adds those that it lacks.
    """

    def __init__(self, config: RunConfig, folder: str, record: Mapping[str, Any], lost: Lost, say: Say) -> None:
        """Start, or continue the tracking of a resumed sweep, of its plain run and the content of sweep.json."""
        self._config = config
        snapshot = SweepSnapshot(name=record["name"], folder=folder, config=config, record=dict(record))
        backends: dict[str, Callable[[SweepSnapshot], _Backend[SweepSnapshot]]] = {}
        if config.tensorboard and tensorboard.is_installed():
            backends["TensorBoard"] = tensorboard.TensorBoardTrialLogger
        if config.mlflow:
            backends[f"MLflow at {config.mlflow}"] = functools.partial(MlflowSweepLogger, config.mlflow, say)
        self._broadcaster = _Broadcaster(snapshot, backends, lost)

    def on_trial_end(self, facts: TrialInfo, folder: str) -> None:
        """Send a trial that has ended under this driver or an earlier one."""
        epochs = metrics_by_step(self._config, facts.history.values())
        trial = TrialSnapshot(facts=facts, folder=folder, epochs=epochs)
        self._broadcaster.update(
            lambda snapshot: dataclasses.replace(snapshot, trials={**snapshot.trials, facts.number: trial})
        )

    def close(self, record: Mapping[str, Any]) -> None:
        """Send the end of the sweep; a final record that is still "running" means that it has failed."""
        end = {"record": dict(record), "state": record["state"], "ended_s": time.time()}
        if record["state"] == "running":
            end["state"] = "failed"
        self._broadcaster.update(lambda snapshot: dataclasses.replace(snapshot, **end))
        self._broadcaster.close()


def _previous_epochs(config: RunConfig, folder: str) -> tuple[EpochSnapshot, ...]:
    """Epochs of earlier drivers, from history.json or the newest checkpoint."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError), storage.timeout(OPTIONAL_STORAGE_S):
        location = storage.join(folder, "history.json")
        if storage.is_file(location):
            return metrics_by_step(config, map(EpochRecord.from_dict, storage.read_json(location)))
        if checkpoints := list_checkpoints(storage.join(folder, "checkpoints")):
            return metrics_by_step(config, map(EpochRecord.from_dict, checkpoints[-1].state["history"]))
    return ()
