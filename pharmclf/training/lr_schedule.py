"""Learning-rate schedule, early stopping, and the choice of the best epoch; pure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pharmclf.config import PhaseConfig, StoppingConfig
from pharmclf.core.events import EpochRecord

_DIVERGED = 100.0  # times the loss of guessing, at which weights have diverged
_PLATEAU_MIN_DELTA = 1e-4  # a validation loss must fall by this to count, as in Keras's ReduceLROnPlateau


def learning_rate(phase: PhaseConfig, stopping: StoppingConfig, step: int, num_steps: int, scale: float) -> float:
    """The learning rate of one training step.

    Args:
        step: number of the step within the phase, from 0.
        num_steps: maximum of the phase.
        scale: learning-rate factor after plateau reductions (constant schedule).
    """
    floor = min(stopping.learning_rate_floor, phase.learning_rate)
    if phase.schedule == "constant":
        return max(phase.learning_rate * scale, floor)
    warmup = round(phase.warmup * num_steps)
    if step < warmup:
        return phase.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return max(phase.learning_rate * 0.5 * (1 + math.cos(math.pi * progress)), floor)


BALANCED_NOTE = (
    "epochs are chosen by balanced accuracy, the mean recall of the classes, because optimizer.class_weights is auto"
)


def selection_score(record: EpochRecord) -> float:
    """Score that the best epoch maximizes: balanced accuracy if the record has it, else validation accuracy."""
    return record.val_accuracy if record.val_balanced_accuracy is None else record.val_balanced_accuracy


@dataclass(frozen=True)
class EarlyStoppingState:
    """State of early stopping and of plateau reductions in a phase."""

    best_accuracy: float = -1.0
    """Best validation accuracy, or balanced accuracy; see `selection_score`."""
    best_loss: float = math.inf
    """Validation loss of the best epoch."""
    best_epoch: int = -1
    since_best: int = 0
    """Epochs since that accuracy last rose."""
    lowest_loss: float = math.inf
    since_lowest: int = 0
    """Epochs since the validation loss last fell, or the learning rate was last lowered."""
    scale: float = 1.0
    """Learning-rate factor after plateau reductions."""

    def after_epoch(self, epoch: int, accuracy: float, loss: float, stopping: StoppingConfig) -> EarlyStoppingState:
        """The state after another epoch; `accuracy` is its `selection_score`."""
        rose = accuracy > self.best_accuracy
        better = rose or (accuracy == self.best_accuracy and loss < self.best_loss)
        fell = loss < self.lowest_loss - _PLATEAU_MIN_DELTA
        since_lowest = 0 if fell else self.since_lowest + 1
        plateau = 0 < stopping.plateau_patience <= since_lowest
        return EarlyStoppingState(
            best_accuracy=accuracy if better else self.best_accuracy,
            best_loss=loss if better else self.best_loss,
            best_epoch=epoch if better else self.best_epoch,
            since_best=0 if rose else self.since_best + 1,
            lowest_loss=loss if fell else self.lowest_loss,
            since_lowest=0 if plateau else since_lowest,
            scale=self.scale * stopping.plateau_factor if plateau else self.scale,
        )

    def with_best(self, record: EpochRecord | None) -> EarlyStoppingState:
        """The state with another best epoch, because the checkpoint of the best is damaged.

        Args:
            record: of the epoch; None: the next epoch is the best so far.
        """
        if record is None:
            return dataclasses.replace(self, best_accuracy=-1.0, best_loss=math.inf, best_epoch=-1)
        accuracy = selection_score(record)
        return dataclasses.replace(self, best_accuracy=accuracy, best_loss=record.val_loss, best_epoch=record.epoch)

    def should_stop(self, stopping: StoppingConfig) -> bool:
        """Whether early stopping ends the phase now."""
        return 0 < stopping.early_patience <= self.since_best

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; infinity is None."""
        return {key: None if value == math.inf else value for key, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EarlyStoppingState:
        """Inverse of `to_dict`."""
        finite: dict[str, Any] = {key: math.inf if value is None else value for key, value in values.items()}
        return cls(**finite)


def best_phase(monitors: Mapping[str, EarlyStoppingState]) -> str:
    """The phase whose best epoch has the best accuracy, then the lowest loss."""
    return max(monitors, key=lambda phase: (monitors[phase].best_accuracy, -monitors[phase].best_loss))


def is_best_of_run(monitors: Mapping[str, EarlyStoppingState], phase: str, epoch: int) -> bool:
    """Whether an epoch of a phase is the best of all phases so far."""
    return best_phase(monitors) == phase and monitors[phase].best_epoch == epoch


def chance_loss(num_classes: int) -> float:
    """The cross-entropy of guessing."""
    return math.log(max(2, num_classes))


def has_diverged(loss: float, num_classes: int) -> bool:
    """Whether a mean loss, even if finite, shows that the weights have diverged."""
    return not loss <= _DIVERGED * chance_loss(num_classes)
