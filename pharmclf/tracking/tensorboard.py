"""Writes TensorBoard event files of runs and trials: curves over both phases, settings, results, plots.

The x axis is the number of the epoch, counted over both phases. The file of each driver holds the run from its first
epoch and replaces earlier files, so that a resumed run shows each epoch once.
"""

from __future__ import annotations

import importlib.util
import logging
import socket
import time
from collections.abc import Iterable

from pharmclf import storage
from pharmclf.config import to_yaml
from pharmclf.core.errors import format_error
from pharmclf.tracking.event_files import EventFile, EventRecords
from pharmclf.tracking.snapshots import (
    EpochSnapshot,
    RunSnapshot,
    SweepSnapshot,
    TrialSnapshot,
    final_metrics,
    visible_files,
)

FOLDER = "tensorboard"
TRIAL_FILE = f"{FOLDER}/events.out.tfevents.0.trial"
TAGS = {
    "train_loss": "loss/train",
    "val_loss": "loss/validation",
    "train_accuracy": "accuracy/train",
    "val_accuracy": "accuracy/validation",
    "val_balanced_accuracy": "accuracy/balanced_validation",
    "best_val_accuracy": "accuracy/best_validation",
    "learning_rate": "training/learning_rate",
    "images_per_second": "training/images_per_second",
    "epoch_seconds": "training/epoch_seconds",
    "phase": "training/phase",
}
"""Tags of `EpochSnapshot.numbers`."""
_CHARTS = {"loss": ("loss/train", "loss/validation"), "accuracy": ("accuracy/train", "accuracy/validation")}
_INTERVAL = ("", "_low", "_high")
_log = logging.getLogger(__name__)


def is_installed() -> bool:
    """Whether event files can be written; imports the package, which must not happen in two threads at once."""
    if importlib.util.find_spec("tensorboardX") is None:
        _log.debug("tensorboardX is not installed; no TensorBoard logs are written")
        return False
    try:
        import tensorboardX  # noqa: F401
    except Exception as error:  # of any kind: a run does not depend on it
        _log.warning("no TensorBoard logs are written: tensorboardX cannot be loaded: %s", format_error(error))
        return False
    return True


class TensorBoardLogger:
    """Writes the event file of one driver of a run."""

    def __init__(self, run: RunSnapshot) -> None:
        """The file is created after the first epoch."""
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self._file = EventFile(storage.join(run.folder, FOLDER, name))
        self._events: EventRecords | None = None
        self._written: set[int] = set()
        self._has_result = False

    def deliver(self, run: RunSnapshot) -> None:
        """Bring the file up to date.

        Raises:
            OSError: the storage does not answer.
        """
        if not run.epochs:
            return
        if self._events is None:
            self._events = _begin_events(run)
        _add_epochs(self._events, [epoch for epoch in run.epochs if epoch.at not in self._written])
        self._written.update(epoch.at for epoch in run.epochs)
        if run.state == "complete" and not self._has_result:
            _add_result(self._events, run)
            self._has_result = True
        self._file.write(self._events.content)


def _begin_events(run: RunSnapshot) -> EventRecords:
    first = run.epochs[0]
    events = EventRecords(first.ended_s)
    events.restart(first.at, first.ended_s)
    events.text("config", f"```yaml\n{to_yaml(run.config)}```", first.at, first.ended_s)
    events.hyperparameters(run.settings, first.ended_s)
    events.charts(_CHARTS, first.ended_s)
    return events


def _add_epochs(events: EventRecords, epochs: Iterable[EpochSnapshot]) -> None:
    for epoch in epochs:
        events.scalars({TAGS[name]: value for name, value in epoch.numbers.items()}, epoch.at, epoch.ended_s)


def _add_result(events: EventRecords, run: RunSnapshot) -> None:
    """Add scores and plots; they are read first, so that unavailable storage leaves no partial result."""
    step, numbers = run.epochs[-1].at, final_metrics(run.read_result())
    plots = {
        path.removesuffix(".png"): storage.read_bytes(location)
        for path, location in visible_files(run.folder).items()
        if path.endswith(".png")
    }
    names = [name for name in numbers if f"{name}_low" in numbers]
    rows = [f"| {name} | " + " | ".join(f"{numbers[name + end]:.4f}" for end in _INTERVAL) + " |" for name in names]
    table = "\n".join(["| | value | 95 % interval from | to |", "|---|---|---|---|", *rows])
    events.text("result", table, step, run.ended_s)
    events.scalars({f"final/{name}": numbers[name] for name in names}, step, run.ended_s)
    for tag, png in plots.items():
        events.image(tag, png, step, run.ended_s)


class TensorBoardTrialLogger:
    """Writes an event file into the folder of each trial of a sweep that has ended."""

    def __init__(self, _sweep: SweepSnapshot) -> None:
        self._done: set[int] = set()

    def deliver(self, sweep: SweepSnapshot) -> None:
        """Write the files that are missing.

        Raises:
            OSError: the storage does not answer.
        """
        for number, trial in sweep.trials.items():
            if number in self._done:
                continue
            location = storage.join(trial.folder, TRIAL_FILE)
            if trial.epochs and not storage.is_file(location):  # an earlier driver may have written it
                storage.write_bytes(location, bytes(_trial_events(trial).content))
            self._done.add(number)


def _trial_events(trial: TrialSnapshot) -> EventRecords:
    began_s = trial.epochs[0].ended_s
    events = EventRecords(began_s)
    events.hyperparameters(trial.facts.params, began_s)
    events.charts(_CHARTS, began_s)
    _add_epochs(events, trial.epochs)
    return events
