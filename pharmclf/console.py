"""The console of a run: what happens is shown as lines and told to those who listen, and a signal reaches the loop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from pharmclf.core.console import Say
from pharmclf.core.signals import GracefulShutdown
from pharmclf.data.quarantine import Quarantine
from pharmclf.reporting.run_summary import progress_line
from pharmclf.storage.lease import Lease
from pharmclf.training.context import Callback, Listener, TrainingDivergedError
from pharmclf.training.lr_schedule import BALANCED, chance_loss, has_diverged


class Console(Callback, Protocol):
    """Who watches a run, may stop it, and shows what it says."""

    def say(self, text: str, /) -> None:
        """Take a line for the console."""


class ConsoleLogger:
    """Shows a run's events, tells others of them, and passes signals on."""

    def __init__(
        self,
        stop: GracefulShutdown,
        lease: Lease,
        quarantine: Quarantine,
        listeners: Sequence[Listener],
        say: Say,
        *,
        num_classes: int,
    ) -> None:
        """Nothing is shown yet.

        Args:
            stop: the signal that may have come.
            lease: of the run's folder; a run that has lost it stops.
            quarantine: takes the images that are lost on the way; a run that has lost too many stops.
            listeners: are told of each event first.
            say: takes lines for the console.
            num_classes: of the run, which decide what loss a guess has.
        """
        self._stop, self._lease, self._quarantine, self._say = stop, lease, quarantine, say
        self._listeners = (quarantine, *listeners)
        self._num_classes = num_classes
        self._diverged: dict[str, float] = {}  # phase -> its first validation loss that was beyond reason

    def say(self, text: str, /) -> None:
        """As `Console.say`."""
        for listener in self._listeners:
            listener.event("note", text=text)
        self._say(text)

    def event(self, kind: str, **values: Any) -> None:
        """As `Callback.event`."""
        for listener in self._listeners:
            listener.event(kind, **values)
        if kind in ("note", "waiting"):
            self._say(values["text"])
        elif kind == "step":
            place = (values["epoch"] + 1, values["epochs"]), (values["step"], values["steps"])
            names = ("loss", "accuracy", "images_per_second", "eta_s")
            self._say(progress_line(values["phase"], *place, **{name: values[name] for name in names}))
        elif kind == "epoch":
            diverged = has_diverged(values["val_loss"], self._num_classes)
            best = "  best so far" if values["best"] and not diverged else ""
            balanced = f" balanced {values[BALANCED]:.4f}" if BALANCED in values else ""
            self._say(
                f"{values['phase']} epoch {values['epoch'] + 1}/{values['epochs']}: "
                f"train loss {values['train_loss']:.4f} accuracy {values['train_accuracy']:.4f}, "
                f"validation loss {values['val_loss']:.4f} accuracy {values['val_accuracy']:.4f}{balanced}, "
                f"{values['images_per_second']:.1f} images/s, {values['seconds']:.0f} s{best}"
            )
            if diverged and values["phase"] not in self._diverged:
                self._diverged[values["phase"]] = values["val_loss"]
                self.say(
                    f"warning: {values['phase']} has diverged: its validation loss is {values['val_loss']:.3g}, and a "
                    f"guess has {chance_loss(self._num_classes):.3g}. Lower {values['phase']}.learning_rate"
                )

    @contextlib.contextmanager
    def explain_divergence(self) -> Iterator[None]:
        """Add to the error of a phase that has diverged that the phase before it had diverged already."""
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
        """As `Callback.should_stop`."""
        return self._stop.received is not None or bool(self._lease.is_lost) or self._quarantine.exceeds_limit
