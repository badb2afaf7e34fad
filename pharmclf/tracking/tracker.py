"""Tells TensorBoard and MLflow of runs and sweeps, from their drivers, behind them."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.core.background import BackgroundTask
from pharmclf.core.console import Say
from pharmclf.core.events import EpochEnd, EpochRecord, Event
from pharmclf.core.timeouts import OPTIONAL_STORAGE_S
from pharmclf.reporting.sweep_tables import TrialInfo
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

_SEND_S = 10.0  # for storage to answer while something is sent; the next attempt follows anyway
_RETRY_S, _ATTEMPTS_AT_CLOSE = 5.0, 3
_CLOSE_S = 60.0  # for all destinations together: the report and the images are sent last
_log = logging.getLogger(__name__)
T = TypeVar("T")
Lost = Callable[[], object]


def check_tracking(config: RunConfig, experiment: str = EXPERIMENT) -> None:
    """See whether a run can be tracked as it asks for.

    Args:
        config: the run.
        experiment: that it belongs to on an MLflow server; of a sweep its name.

    Raises:
        ConfigError: an MLflow server that cannot be used. What it refuses later is warned of only.
    """
    if config.mlflow:
        check_mlflow(config.mlflow, experiment)


class _Broadcaster(Generic[T]):
    """A story that grows, and the places that it is told to."""

    def __init__(self, story: T, lost: Lost) -> None:
        self._story, self._lost, self._lock = story, lost, threading.Lock()
        self._senders: dict[str, BackgroundTask] = {}

    def add_backend(self, name: str, deliver: Callable[[T], None]) -> None:
        """Tell it there from now on."""

        def work() -> None:
            with self._lock:
                story = self._story
            if not self._lost():  # else another driver tells it
                with storage.timeout(_SEND_S):
                    deliver(story)

        self._senders[name] = BackgroundTask(
            f"tracking-{name}",
            work,
            attempts_at_close=_ATTEMPTS_AT_CLOSE,
            retry_s=_RETRY_S,
            failure=f"{name} cannot be updated",
        )
        self._senders[name].notify()

    def update(self, change: Callable[[T], T]) -> None:
        """The story has gone on."""
        with self._lock:
            self._story = change(self._story)
        for sender in self._senders.values():
            sender.notify()

    def close(self) -> None:
        """Tell it to its end; places that do not answer are waited for a minute at most, all together."""
        deadline = time.monotonic() + _CLOSE_S
        for sender in self._senders.values():
            sender.request_close()
        for name, sender in self._senders.items():
            if not sender.close(max(0.0, deadline - time.monotonic())):
                _log.warning("%s: no answer for %.0f s; the end may be missing there", name, _CLOSE_S)
            elif sender.failed:
                _log.warning("%s: the end could not be sent; all of it is in the run's folder", name)


class Tracker:
    """Tracks a run; no event waits for a server or a disk, and none fails by it."""

    def __init__(self, config: RunConfig, folder: str, record: RunRecord, lost: Lost, say: Say) -> None:
        """Begin, or go on with what was tracked of the run before.

        Args:
            config: the run.
            folder: of the run.
            record: of the run.
            lost: whether the lease of the folder has been lost; then nothing is told any more.
            say: takes a line for the console: where the page on the MLflow server is.
        """
        self._config = config
        story = RunSnapshot(
            name=record.name,
            folder=folder,
            config=config,
            settings=flatten(record.settings),
            tags=run_tags(folder, record.fingerprints, record.versions),
            epochs=_previous_epochs(config, folder),
        )
        self._telling = _Broadcaster(story, lost)
        if config.tensorboard and tensorboard.is_installed():
            self._telling.add_backend("TensorBoard", tensorboard.TensorBoardLogger(folder).deliver)
        if config.mlflow:
            self._telling.add_backend(f"MLflow at {config.mlflow}", MlflowRunLogger(config.mlflow, say).deliver)

    def on_event(self, event: Event, /) -> None:
        """As `Callback.on_event`."""
        if isinstance(event, EpochEnd):
            self._telling.update(lambda story: self._with_epoch(story, event.record))

    def _with_epoch(self, story: RunSnapshot, record: EpochRecord) -> RunSnapshot:
        best = story.epochs[-1].numbers.get(BEST, 0.0) if story.epochs else 0.0
        fresh = metrics_by_step(self._config, [record], best=best)
        known = {epoch.at for epoch in story.epochs}  # what is trained again after a loss takes the same steps
        return dataclasses.replace(story, epochs=(*story.epochs, *(one for one in fresh if one.at not in known)))

    def close(self, state: str) -> None:
        """Tell the end; places that do not answer are waited for a minute at most.

        Args:
            state: interrupted, failed or complete; of a complete run the result, report and pictures in its folder are
                told too.
        """
        self._telling.update(lambda story: dataclasses.replace(story, state=state, ended_s=time.time()))
        self._telling.close()


def track_complete(config: RunConfig, folder: str, record: RunRecord, say: Say) -> None:
    """Tell MLflow of a run that is complete already; what it knows stays as it is."""
    if config.mlflow:
        Tracker(dataclasses.replace(config, tensorboard=False), folder, record, lambda: None, say).close("complete")


class SweepTracker:
    """Tracks a sweep; nothing waits for a server or a disk, and nothing fails by it.

    What is told comes from the ledger, which stands in storage, so that a resumed sweep tells each trial once.
    """

    def __init__(self, config: RunConfig, folder: str, record: Mapping[str, Any], lost: Lost, say: Say) -> None:
        """Begin, or go on with what was tracked of the sweep before.

        Args:
            config: its plain run.
            folder: of the sweep.
            record: the content of its sweep.json.
            lost: whether the lease of the folder has been lost; then nothing is told any more.
            say: takes a line for the console: where the page on the MLflow server is.
        """
        self._config = config
        story = SweepSnapshot(name=record["name"], folder=folder, config=config, record=dict(record))
        self._telling = _Broadcaster(story, lost)
        if config.tensorboard and tensorboard.is_installed():
            self._telling.add_backend("TensorBoard", tensorboard.TensorBoardTrialLogger().deliver)
        if config.mlflow:
            self._telling.add_backend(f"MLflow at {config.mlflow}", MlflowSweepLogger(config.mlflow, say).deliver)

    def on_trial_end(self, facts: TrialInfo, folder: str) -> None:
        """A trial has ended, now or under an earlier driver."""
        trial = TrialSnapshot(facts=facts, folder=folder, epochs=metrics_by_step(self._config, facts.history.values()))
        self._telling.update(lambda story: dataclasses.replace(story, trials={**story.trials, facts.number: trial}))

    def close(self, record: Mapping[str, Any]) -> None:
        """Tell the end; places that do not answer are waited for a minute at most.

        Args:
            record: the content of sweep.json by now; where its state is running still, the sweep has failed.
        """
        state = "failed" if record["state"] == "running" else str(record["state"])

        def end(story: SweepSnapshot) -> SweepSnapshot:
            return dataclasses.replace(story, record=dict(record), state=state, ended_s=time.time())

        self._telling.update(end)
        self._telling.close()


def _previous_epochs(config: RunConfig, folder: str) -> tuple[EpochSnapshot, ...]:
    """The epochs of a run so far: as its end has left them, or as its newest checkpoint has them."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError), storage.timeout(OPTIONAL_STORAGE_S):
        location = storage.join(folder, "history.json")
        if storage.is_file(location):
            return metrics_by_step(config, map(EpochRecord.from_dict, storage.read_json(location)))
        if checkpoints := list_checkpoints(storage.join(folder, "checkpoints")):
            return metrics_by_step(config, map(EpochRecord.from_dict, checkpoints[-1].state["history"]))
    return ()
