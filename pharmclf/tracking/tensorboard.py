"""What TensorBoard shows of a run and of the trials of a sweep: curves over both phases, settings, results, pictures.

The axis is the number of the epoch, counted over both phases. The file of each driver holds the run from its first
epoch on and takes the place of earlier ones, so that a resumed run shows every epoch once, whatever was lost before.
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
"""Of the numbers of an epoch."""
_CHARTS = {"loss": ("loss/train", "loss/validation"), "accuracy": ("accuracy/train", "accuracy/validation")}
_ENDS = ("", "_low", "_high")
_log = logging.getLogger(__name__)


def is_installed() -> bool:
    """Whether event files can be written. The package is loaded here: not in two threads at once."""
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
    """The event file of a run's driver."""

    def __init__(self, folder: str) -> None:
        """Nothing is written before the first epoch has ended.

        Args:
            folder: of the run.
        """
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self._file = EventFile(storage.join(folder, FOLDER, name))
        self._events: EventRecords | None = None
        self._written: set[int] = set()
        self._ended = False

    def deliver(self, story: RunSnapshot) -> None:
        """Bring the file up to date.

        Raises:
            OSError: the storage does not answer.
        """
        if not story.epochs:
            return
        if self._events is None:
            self._events = _create_events(story)
        fresh = [epoch for epoch in story.epochs if epoch.at not in self._written]
        _add_epochs(self._events, fresh)
        self._written.update(epoch.at for epoch in fresh)
        if story.state == "complete" and not self._ended:
            _add_end(self._events, story)
            self._ended = True
        self._file.write(self._events.content)


def _create_events(story: RunSnapshot) -> EventRecords:
    first = story.epochs[0]
    events = EventRecords(first.ended_s)
    events.restart(first.at, first.ended_s)
    events.text("config", f"```yaml\n{to_yaml(story.config)}```", first.at, first.ended_s)
    events.hyperparameters(story.settings, first.ended_s)
    events.charts(_CHARTS, first.ended_s)
    return events


def _add_epochs(events: EventRecords, epochs: Iterable[EpochSnapshot]) -> None:
    """Add the numbers of some epochs."""
    for epoch in epochs:
        numbers = {TAGS[name]: value for name, value in epoch.numbers.items()}
        events.scalars(numbers, epoch.at, epoch.ended_s)


def _add_end(events: EventRecords, story: RunSnapshot) -> None:
    """Add the final numbers and the pictures."""
    last, ended_s = story.epochs[-1].at, story.ended_s
    result = story.read_result()
    pictures = {
        path.removesuffix(".png"): storage.read_bytes(location)
        for path, location in visible_files(story.folder).items()
        if path.endswith(".png")
    }  # read before anything is added, so that a storage that is away leaves no half of an end
    numbers = final_metrics(result)
    measured = [name for name in numbers if f"{name}_low" in numbers]
    rows = [f"| {name} | " + " | ".join(f"{numbers[name + end]:.4f}" for end in _ENDS) + " |" for name in measured]
    events.text(
        "result", "\n".join(["| | value | 95 % interval from | to |", "|---|---|---|---|", *rows]), last, ended_s
    )
    events.scalars({f"final/{name}": numbers[name] for name in measured}, last, ended_s)
    for tag, png in pictures.items():
        events.image(tag, png, last, ended_s)


class TensorBoardTrialLogger:
    """An event file in the folder of each trial of a sweep, written when it has ended."""

    def __init__(self) -> None:
        self._done: set[int] = set()

    def deliver(self, story: SweepSnapshot) -> None:
        """Write those that are missing.

        Raises:
            OSError: the storage does not answer.
        """
        for number, trial in story.trials.items():
            if number in self._done:
                continue
            location = storage.join(trial.folder, TRIAL_FILE)
            if trial.epochs and not storage.is_file(location):  # it may be of an earlier driver
                storage.write_bytes(location, bytes(_trial_events(trial).content))
            self._done.add(number)


def _trial_events(trial: TrialSnapshot) -> EventRecords:
    began_s = trial.epochs[0].ended_s
    events = EventRecords(began_s)
    events.hyperparameters(trial.facts.params, began_s)
    events.charts(_CHARTS, began_s)
    _add_epochs(events, trial.epochs)
    return events
