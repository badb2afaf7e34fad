"""Console output of a run; passes its events to other callbacks and stop requests to the training loop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Protocol

from pharmclf.core.console import Say, print_detail, show_activity
from pharmclf.core.events import (
    ActivityStarted,
    Callback,
    CallbackList,
    CheckpointSaved,
    EpochEnd,
    Event,
    FinalEvaluationStarted,
    Note,
    RunCallback,
    StepEnd,
    Waiting,
    WorkersStarted,
)
from pharmclf.core.signals import GracefulShutdown
from pharmclf.data.quarantine import Quarantine
from pharmclf.reporting.epoch_rows import epoch_header, epoch_row, step_progress
from pharmclf.storage.lease import Lease
from pharmclf.training.context import TrainingDivergedError
from pharmclf.training.lr_schedule import chance_loss, has_diverged


class Console(RunCallback, Protocol):
    """A callback that shows lines to the user."""

    def say(self, text: str, /) -> None:
        """Show a line."""


class ConsoleLogger:
    """Shows the events of a run, and requests a stop on a signal, a lost lease or too many invalid images."""

    def __init__(
        self,
        stop: GracefulShutdown,
        lease: Lease,
        quarantine: Quarantine,
        callbacks: Sequence[Callback],
        say: Say,
        *,
        num_classes: int,
    ) -> None:
        """Nothing is shown yet.

        Args:
            stop: signals received.
            lease: of the run folder.
            quarantine: gets the images that are excluded during the run.
            callbacks: handle each event before it is shown.
            say: shows a line.
            num_classes: of the run; decides which loss is that of a random guess.
        """
        self._stop, self._lease, self._quarantine, self._say = stop, lease, quarantine, say
        self._callbacks = CallbackList([quarantine, *callbacks])
        self._num_classes = num_classes
        self._activity = show_activity()
        self._phase = ""  # whose epochs have a heading
        self._diverged: dict[str, float] = {}  # phase -> its first validation loss that counts as diverged

    def say(self, text: str, /) -> None:
        """As `Console.say`."""
        self.on_event(Note(text=text))

    def on_event(self, event: Event, /) -> None:
        """As `Callback.on_event`."""
        self._callbacks.on_event(event)
        match event:
            case Note(text=text):
                self._say(text)
            case Waiting(text=text):
                self._say(text)
                self._activity.begin("waiting for resources")
            case ActivityStarted(text=text, usual_s=usual_s):
                self._activity.begin(text, usual_s)
            case WorkersStarted(nodes=nodes):
                print_detail(f"workers have started on {', '.join(nodes)}")
            case CheckpointSaved(name=name):
                print_detail(f"checkpoint {name}")
            case StepEnd():
                self._activity.progress(*step_progress(event))
            case EpochEnd():
                self._show_epoch(event)
            case FinalEvaluationStarted():
                self._activity.begin("")

    def _show_epoch(self, event: EpochEnd) -> None:
        record = event.record
        diverged = has_diverged(record.val_loss, self._num_classes)
        if record.phase != self._phase:
            self._phase = record.phase
            self._say(epoch_header(is_balanced=record.val_balanced_accuracy is not None))
        self._say(epoch_row(record, event.epochs, is_best=event.is_best and not diverged))
        if diverged and record.phase not in self._diverged:
            self._diverged[record.phase] = record.val_loss
            self.say(
                f"warning: {record.phase} has diverged: its validation loss is {record.val_loss:.3g}, and that of a "
                f"random guess is {chance_loss(self._num_classes):.3g}. Lower {record.phase}.learning_rate"
            )

    @contextlib.contextmanager
    def explain_divergence(self) -> Iterator[None]:
        """Extend a `TrainingDivergedError` of the block where an earlier phase has already diverged."""
        try:
            yield
        except TrainingDivergedError as error:
            phase, loss = next(iter(self._diverged.items()), ("", 0.0))
            if not phase or f"in {phase}," in str(error):
                raise
            raise TrainingDivergedError(
                f"{error}. {phase} had diverged before, to a validation loss of {loss:.3g}: lower "
                f"{phase}.learning_rate first"
            ) from error

    def should_stop(self) -> bool:
        """As `RunCallback.should_stop`."""
        return self._stop.received is not None or bool(self._lease.is_lost) or self._quarantine.exceeds_limit
